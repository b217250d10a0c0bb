// The page: consent, capture, results. What goes over the WebSocket is in client.js.

import { AffectClient } from "./client.js";
import { addResult, clearTimeline, drawTimeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const SUMMARY_MS = 5000; // a screen reader hears a summary this often, not every result
const MAX_EVENTS = 50;
const FRAME_WIDTH = 640;

let client = null;
let media = null; // the tracks that are open
let context = null;
let frameTimer = null;
let lastSummary = -Infinity;
let missing = []; // what was asked for and isn't there

$("where").textContent = location.host;
let token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) history.replaceState(null, "", location.pathname); // off the screen and out of the history
fetch("healthz")
  .then((answer) => answer.json())
  .then((health) => ($("token-field").hidden = !health.token_required || Boolean(token)))
  .catch(() => notice("The server can't be reached; is it running?"));

function notice(text) {
  $("notice").textContent = text;
}

function sensing(text, on) {
  $("sensing").dataset.on = on;
  $("sensing-text").textContent = text;
}

async function ask(kind, constraints) {
  try {
    return (await navigator.mediaDevices.getUserMedia({ [kind]: constraints })).getTracks();
  } catch (error) {
    const what = kind === "video" ? "camera" : "microphone";
    const why = error.name === "NotAllowedError" ? "was denied" : `can't be had (${error.name})`;
    missing.push(`The ${what} ${why}.`);
    return [];
  }
}

async function start() {
  $("start").disabled = true;
  missing = [];
  const tracks = [];
  if (navigator.mediaDevices) {
    if ($("use-camera").checked) tracks.push(...(await ask("video", { width: FRAME_WIDTH, facingMode: "user" })));
    if ($("use-microphone").checked) tracks.push(...(await ask("audio", { channelCount: 1 })));
  } else {
    missing.push("This browser gives camera and microphone to https pages and to this machine's own alone.");
  }
  media = new MediaStream(tracks);
  for (const track of tracks) track.onended = () => lost(track);
  if (missing.length) notice(`${missing.join(" ")} It goes on with what is left; you can type your words.`);
  else notice("");
  $("consent").hidden = true;
  $("live").hidden = false;
  $("stop").hidden = false;
  $("stop").focus();
  clearTimeline();
  const url = new URL("v1/stream", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  client = new AffectClient(url, { token: token || $("token").value, on: { hello, result, error, state } });
  await startAudio();
}

function lost(track) {
  notice(`The ${track.kind === "video" ? "camera" : "microphone"} is gone. It goes on with what is left.`);
  if (client?.ready) sensing(senses(), true);
}

function senses() {
  const live = [...media.getVideoTracks(), ...media.getAudioTracks()].filter((track) => track.readyState === "live");
  const names = live.map((track) => (track.kind === "video" ? "camera" : "microphone"));
  return names.length ? `Sensing: ${names.join(" and ")}` : "Sensing: typed words alone";
}

async function startAudio() {
  if (!media.getAudioTracks().length) return;
  try {
    context = new AudioContext({ sampleRate: 16000 });
    context.createMediaStreamSource(media);
  } catch {
    context = new AudioContext(); // Firefox wants the microphone's own rate; the server takes any
  }
  await context.audioWorklet.addModule("worklet.js");
  if (!context || context.state === "closed") return;
  const chunks = new AudioWorkletNode(context, "chunks", { numberOfOutputs: 0 });
  const rate = context.sampleRate;
  chunks.port.onmessage = ({ data }) => client?.pushAudio(data, rate);
  context.createMediaStreamSource(media).connect(chunks);
  await context.resume();
}

async function startVideo(rateHz) {
  clearInterval(frameTimer);
  if (!media.getVideoTracks().length || !rateHz) return;
  const video = $("preview");
  video.srcObject = media;
  await video.play();
  const canvas = document.createElement("canvas");
  let busy = false;
  frameTimer = setInterval(() => {
    if (busy || !client || client.congested || !video.videoWidth) return;
    busy = true;
    canvas.width = Math.min(FRAME_WIDTH, video.videoWidth);
    canvas.height = Math.round((canvas.width * video.videoHeight) / video.videoWidth);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(
      async (blob) => {
        if (blob) client?.pushFrame(await blob.arrayBuffer());
        busy = false;
      },
      "image/jpeg",
      0.85,
    );
  }, 1000 / rateHz);
}

function hello(message) {
  sensing(senses(), true);
  $("emotions").replaceChildren(...message.emotions.flatMap(emotionRow));
  startVideo(message.frame_rate_hz);
}

function emotionRow(name) {
  const term = Object.assign(document.createElement("dt"), { textContent: name });
  const bar = document.createElement("dd");
  bar.append(Object.assign(document.createElement("meter"), { id: `meter-${name}`, ariaLabel: name }));
  const share = Object.assign(document.createElement("dd"), { id: `share-${name}`, textContent: "–" });
  return [term, bar, share];
}

const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

function result(message) {
  $("sentiment").textContent = signed(message.sentiment);
  $("interval").textContent = message.interval.map(signed).join(" … ");
  $("latency").textContent = `${message.latency_ms.toFixed(0)} ms`;
  for (const name of ["text", "audio", "vision"]) {
    const lamp = $(`lamp-${name}`);
    const on = message.present.includes(name);
    lamp.dataset.on = on;
    lamp.lastElementChild.textContent = on ? "present" : "absent";
  }
  for (const [name, share] of Object.entries(message.emotions)) {
    $(`meter-${name}`).value = share;
    $(`share-${name}`).textContent = `${Math.round(100 * share)} %`;
  }
  addResult(message);
  drawTimeline($("band"), $("line"));
  for (const event of message.events) tell(`${event.code}: ${event.message}`);
  const now = performance.now();
  if (now - lastSummary > SUMMARY_MS) {
    lastSummary = now;
    $("summary").textContent = message.present.length
      ? `Sentiment ${signed(message.sentiment)}, mostly ${message.emotion}`
      : "Nothing is sensed";
  }
}

function error(message) {
  tell(`${message.code}: ${message.message}`);
  if (message.fatal) notice(message.message);
}

function tell(text) {
  const item = Object.assign(document.createElement("li"), { textContent: text });
  $("events").prepend(item);
  while ($("events").childElementCount > MAX_EVENTS) $("events").lastElementChild.remove();
}

function state(name, code) {
  if (name === "connected") {
    if ($("notice").textContent.startsWith("The connection")) notice("");
  } else if (name === "refused") {
    const told = $("notice").textContent;
    if (code === 4001) token = null;
    stop();
    $("token-field").hidden = code !== 4001;
    notice(told || "The server refused the connection.");
  } else {
    sensing("Not sensing: not connected", false);
    for (const id of ["lamp-text", "lamp-audio", "lamp-vision"]) $(id).dataset.on = false;
    if (code === 4004) return; // full: the server has said so
    notice("The connection to the server is lost. Trying again …");
  }
}

function stop() {
  client?.close();
  client = null;
  clearInterval(frameTimer);
  media?.getTracks().forEach((track) => track.stop());
  $("preview").srcObject = null;
  context?.close();
  context = null;
  sensing("Not sensing", false);
  notice("");
  $("live").hidden = true;
  $("stop").hidden = true;
  $("consent").hidden = false;
  $("start").disabled = false;
  $("start").focus();
}

$("start").addEventListener("click", start);
$("stop").addEventListener("click", stop);
$("words-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("words").value.trim();
  if (text && client?.pushText(text)) $("words").value = "";
});
