// In the audio thread: microphone samples, 50 ms at a time, as 16-bit integers.
class Chunks extends AudioWorkletProcessor {
  constructor() {
    super();
    this.chunk = new Int16Array(Math.round(sampleRate / 20));
    this.filled = 0;
  }

  process(inputs) {
    for (const sample of inputs[0][0] ?? []) {
      this.chunk[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === this.chunk.length) {
        this.port.postMessage(this.chunk.slice().buffer);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("chunks", Chunks);
