// The WebSocket protocol of AffectRT, version 1 (docs/protocol.md), for any page: no dependencies.

const VERSION = 1;
const PCM_S16 = 1, JPEG = 3;
const HEADER_BYTES = 24;
const MAX_BUFFERED_BYTES = 256 * 1024; // beyond it pictures stay here: the network is too slow for them
const FIRST_RETRY_MS = 500, LAST_RETRY_MS = 8000;
const FINAL = new Set([4000, 4001]); // trying again would end the same way

function binary(kind, payload, { rate = 0, channels = 0, sequence = 0, timeS = NaN } = {}) {
  const message = new Uint8Array(HEADER_BYTES + payload.byteLength);
  const header = new DataView(message.buffer);
  header.setUint8(0, kind);
  header.setUint8(1, VERSION);
  header.setUint16(2, channels, true);
  header.setUint32(4, sequence, true);
  header.setFloat64(8, timeS, true);
  header.setUint32(16, rate, true);
  message.set(new Uint8Array(payload), HEADER_BYTES);
  return message;
}

/** One stream. Reconnects by itself until close(); tells what happens by `on`: hello, result, error, state. */
export class AffectClient {
  constructor(url, { token, hopS, on }) {
    Object.assign(this, { url, on, socket: null, closed: false, ready: false, retryMs: FIRST_RETRY_MS, sequence: 0 });
    this.greeting = { type: "hello", version: VERSION };
    if (token) this.greeting.token = token;
    if (hopS) this.greeting.hop_s = hopS;
    this.connect();
  }

  connect() {
    const socket = (this.socket = new WebSocket(this.url, "affectrt.v1"));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify(this.greeting));
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "hello") {
        this.ready = true;
        this.retryMs = FIRST_RETRY_MS;
        this.on.state?.("connected");
      }
      this.on[message.type]?.(message);
    };
    socket.onclose = ({ code }) => {
      this.ready = false;
      if (this.closed) return;
      if (FINAL.has(code)) {
        this.closed = true;
        this.on.state?.("refused", code);
        return;
      }
      this.on.state?.("lost", code);
      this.timer = setTimeout(() => this.connect(), this.retryMs);
      this.retryMs = Math.min(2 * this.retryMs, LAST_RETRY_MS);
    };
  }

  get congested() {
    return !this.ready || this.socket.bufferedAmount > MAX_BUFFERED_BYTES;
  }

  /** 16-bit samples of one channel, heard until now. */
  pushAudio(buffer, rate) {
    // Sound is worth more than pictures, but what waits must not grow for ever.
    if (this.ready && this.socket.bufferedAmount < 8 * MAX_BUFFERED_BYTES)
      this.socket.send(binary(PCM_S16, buffer, { rate, channels: 1, sequence: this.sequence++ }));
  }

  /** A JPEG picture of now. */
  pushFrame(buffer) {
    if (!this.congested) this.socket.send(binary(JPEG, buffer, { sequence: this.sequence++ }));
  }

  /** Words said just now; false: not connected. */
  pushText(text) {
    if (this.ready) this.socket.send(JSON.stringify({ type: "text", text }));
    return this.ready;
  }

  close() {
    this.closed = true;
    this.ready = false;
    clearTimeout(this.timer);
    this.socket.close(1000);
  }
}
