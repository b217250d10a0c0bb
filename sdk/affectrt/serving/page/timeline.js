// Sentiment of the last minute with its interval, as two paths of an SVG.

const SPAN_S = 60;
const LEFT = 30, RIGHT = 600, MIDDLE = 90, PER_UNIT = 80 / 3;
let results = [];

export function clearTimeline() {
  results = [];
}

export function addResult(result) {
  // After a reconnection the server's clock begins anew.
  if (results.length && result.time_s <= results.at(-1).time_s) results = [];
  results.push(result);
  while (results[0].time_s < result.time_s - SPAN_S) results.shift();
}

export function drawTimeline(band, line) {
  const end = results.at(-1).time_s;
  const x = (timeS) => (RIGHT - ((end - timeS) / SPAN_S) * (RIGHT - LEFT)).toFixed(1);
  const y = (value) => (MIDDLE - value * PER_UNIT).toFixed(1);
  const path = (points) => "M" + points.join("L");
  line.setAttribute("d", path(results.map((r) => `${x(r.time_s)} ${y(r.sentiment)}`)));
  const upper = results.map((r) => `${x(r.time_s)} ${y(r.interval[1])}`);
  const lower = results.map((r) => `${x(r.time_s)} ${y(r.interval[0])}`).reverse();
  band.setAttribute("d", path([...upper, ...lower]) + "Z");
}
