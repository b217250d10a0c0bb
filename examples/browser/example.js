// A page of another server that uses `affectrt serve`:
//
//   affectrt serve --origin http://127.0.0.1:8000
//   python -m http.server 8000 --bind 127.0.0.1 --directory examples/browser
//
// Words alone, to be short; sdk/affectrt/serving/page has microphone and camera, and reconnects.

const server = new URLSearchParams(location.search).get("server") ?? "ws://127.0.0.1:8765";
const status = document.querySelector("[role=status]");
const results = document.querySelector("pre");
const socket = new WebSocket(`${server}/v1/stream`, "affectrt.v1");

socket.onopen = () => socket.send(JSON.stringify({ type: "hello", version: 1, hop_s: 0.5 }));
socket.onclose = ({ code, reason }) => (status.textContent = `closed: ${code} ${reason}`);
socket.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  if (message.type === "hello") status.textContent = `connected to ${message.model}`;
  else if (message.type === "error") status.textContent = `${message.code}: ${message.message}`;
  else if (message.type === "result") {
    const { sentiment, interval, emotion, present } = message;
    results.textContent = JSON.stringify({ sentiment, interval, emotion, present }, null, 2);
  }
};

document.querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const field = event.target.elements.words;
  socket.send(JSON.stringify({ type: "text", text: field.value }));
  field.value = "";
};
