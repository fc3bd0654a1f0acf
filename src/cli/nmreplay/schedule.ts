/**
 * What nmreplay sends, and when: a trace in memory, and the walk through it with the models of models.ts. Mirrors pcap_prod:
 * a lost packet takes no time on the link; a delay never reorders packets, and keeps them a transmission time apart.
 */
import { LINKTYPE_ETHERNET } from '../pcap/format.ts';
import { CaptureError, CaptureReader } from '../pcap/reader.ts';
import type { Bandwidth, Delay, Loss } from './models.ts';

/** Packets that may be lost one after the other while the walk has no end: then nothing gets through. */
const ALL_LOST = 1_000_000;
/** Longest packet that a chain of slots may be. */
const MAX_PACKET = 65535;

/** Packets of a capture, one behind the other, each at a multiple of 4. */
export class Trace {
  /** Packet i: its bytes are at `ofs[i]`, `captured[i]` of them; on the wire it had `bytes[i]`. */
  readonly data: Uint8Array;
  readonly ofs: Float64Array;
  readonly captured: Uint32Array;
  readonly bytes: Uint32Array;
  /** Nanoseconds since the packet before. */
  readonly gap: Float64Array;

  constructor(packets: readonly { readonly data: Uint8Array; readonly bytes: number; readonly gap: number }[]) {
    const n = packets.length;
    this.ofs = new Float64Array(n);
    this.captured = new Uint32Array(n);
    this.bytes = new Uint32Array(n);
    this.gap = new Float64Array(n);
    let total = 0;
    for (const [i, packet] of packets.entries()) {
      this.ofs[i] = total;
      this.captured[i] = packet.data.length;
      this.bytes[i] = packet.bytes;
      this.gap[i] = packet.gap;
      total += (packet.data.length + 3) & ~3;
    }
    this.data = new Uint8Array(total);
    for (const [i, packet] of packets.entries()) this.data.set(packet.data, this.ofs[i]);
  }

  get packets(): number {
    return this.bytes.length;
  }

  /** Reads a whole capture. @throws CaptureError: no capture, no Ethernet, no packets */
  static read(path: string): Trace {
    const reader = new CaptureReader(path);
    const packets: { data: Uint8Array; bytes: number; gap: number }[] = [];
    let seconds = 0;
    let nanoseconds = 0;
    try {
      while (reader.next()) {
        if (reader.linkType !== LINKTYPE_ETHERNET) {
          throw new CaptureError(
            `${path}: packet ${packets.length + 1} has link type ${reader.linkType}, not Ethernet`,
          );
        }
        const bytes = Math.max(reader.length, reader.data.length);
        if (bytes > MAX_PACKET) throw new CaptureError(`${path}: packet ${packets.length + 1} has ${bytes} bytes`);
        const first = packets.length === 0;
        const gap = first ? 0 : (reader.seconds - seconds) * 1e9 + reader.nanoseconds - nanoseconds;
        // Time that goes backwards, as in merged captures, stands still.
        packets.push({ data: reader.data.slice(), bytes, gap: Math.max(0, gap) });
        if (first || gap > 0) ({ seconds, nanoseconds } = reader);
      }
    } finally {
      reader.close();
    }
    if (packets.length === 0) throw new CaptureError(`${path} has no packets`);
    return new Trace(packets);
  }
}

/** The walk: `next` goes to the next packet that is to be sent. */
export class Schedule {
  /** Index in the trace. */
  packet = -1;
  /** When to send it, nanoseconds from the start. */
  time = 0;
  lost = 0;
  readonly #trace: Trace;
  readonly #bandwidth: Bandwidth;
  readonly #delay: Delay;
  readonly #loss: Loss;
  #loopsLeft: number;
  /** When the packet left the link, before the delay. */
  #out = 0;

  /** @param loops how many times the trace is walked through */
  constructor(trace: Trace, loops: number, bandwidth: Bandwidth, delay: Delay, loss: Loss) {
    this.#trace = trace;
    this.#loopsLeft = loops;
    this.#bandwidth = bandwidth;
    this.#delay = delay;
    this.#loss = loss;
  }

  /** False at the end, or if a walk without one loses everything: who waits for it sees no signal meanwhile. */
  next(): boolean {
    const { bytes, gap, packets } = this.#trace;
    for (let inRow = 0; inRow < ALL_LOST || this.#loopsLeft !== Number.POSITIVE_INFINITY; inRow++) {
      if (++this.packet === packets) {
        this.packet = 0;
        if (--this.#loopsLeft <= 0) return false;
      }
      const length = bytes[this.packet]!;
      if (this.#loss(length)) {
        this.lost += 1;
        continue;
      }
      const onLink = this.#bandwidth(length, gap[this.packet]!);
      this.#out += onLink;
      this.time = Math.max(this.#out + this.#delay(), this.time + onLink);
      return true;
    }
    return false;
  }
}
