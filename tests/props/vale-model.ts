/** VALE as plainly as it can be said, in TypeScript: what props/vale.test.ts compares the datapath with. */
import { NM_BDG_HASH } from '../../src/abi/index.ts';
import { convert, malformed } from '../unit/offload/naive.ts';

export interface ModelPacket {
  readonly frags: readonly Uint8Array[];
  /** A slot of it is bad. */
  readonly bad: boolean;
}

const NAMES = [
  'packets',
  'slots',
  'bytes',
  'drop_full',
  'drop_stopped',
  'drop_dst',
  'drop_offload',
  'segments',
] as const;
export type RxCounts = Record<(typeof NAMES)[number], number>;
export type TxCounts = Record<'packets' | 'slots' | 'bytes' | 'copies' | 'drop_bad' | 'drop_nodst', number>;

export class ModelRx {
  readonly slots: number;
  readonly bufSize: number;
  running = true;
  /** Slot the next frame goes to, and slots the guest has not released. */
  tail = 0;
  held = 0;
  /** Positions whose buf_idx the guest spoilt. */
  readonly spoilt = new Set<number>();
  /** Packets that arrived since the guest last looked. */
  arrived: Uint8Array[][] = [];
  readonly counts: RxCounts = Object.fromEntries(NAMES.map((n) => [n, 0])) as RxCounts;

  constructor(slots: number, bufSize: number) {
    this.slots = slots;
    this.bufSize = bufSize;
  }

  deliver(packet: readonly Uint8Array[], hdr: number, dstHdr: number): void {
    const { counts } = this;
    if (!this.running) return void counts.drop_stopped++;
    if (hdr === dstHdr) return void this.#put([packet]);
    const frames = convert(flat(packet), hdr, dstHdr);
    if (frames === undefined) return void counts.drop_offload++;
    const cut = frames.map((frame) => this.#cut(frame));
    if (cut.some((slots) => slots.length > 64)) return void counts.drop_dst++;
    if (this.#put(cut)) counts.segments += frames.length - 1;
  }

  /** Puts frames into the ring, all of them or, if there is no room, none. */
  #put(frames: readonly (readonly Uint8Array[])[]): boolean {
    const { counts } = this;
    const slots = frames.reduce((n, frags) => n + frags.length, 0);
    if (slots > this.slots - 1 - this.held) return !++counts.drop_full;
    for (const [k, frags] of frames.entries()) {
      for (const [i, frag] of frags.entries()) {
        if (frag.length > this.bufSize) return !++counts.drop_dst;
        if (!this.spoilt.has((this.tail + i) % this.slots)) continue;
        this.#advance(i + 1);
        counts.segments += k;
        return !++counts.drop_dst;
      }
      this.#advance(frags.length);
      counts.packets++;
      counts.slots += frags.length;
      counts.bytes += size(frags);
      this.arrived.push(frags.map((f) => f.slice()));
    }
    return true;
  }

  #cut(frame: Uint8Array): Uint8Array[] {
    const slots = Math.ceil(frame.length / this.bufSize);
    return Array.from({ length: slots }, (_, i) => frame.subarray(i * this.bufSize, (i + 1) * this.bufSize));
  }

  #advance(n: number): void {
    this.tail = (this.tail + n) % this.slots;
    this.held += n;
  }
}

export interface ModelPort {
  readonly hdr: number;
  readonly rx: readonly ModelRx[];
  readonly tx: readonly TxCounts[];
}

export class ModelVale {
  readonly ports: readonly ModelPort[];
  readonly #table = new Map<number, { mac: bigint; port: number }>();

  constructor(ports: readonly ModelPort[]) {
    this.ports = ports;
  }

  send(from: number, ring: number, packet: ModelPacket): void {
    const { hdr, tx } = this.ports[from]!;
    const counts = tx[ring]!;
    counts.slots += packet.frags.length;
    const eth = ethernet(packet.frags, hdr);
    if (packet.bad || packet.frags.length > 64 || eth === undefined) return void counts.drop_bad++;
    if (hdr > 0 && malformed(flat(packet.frags), hdr)) return void counts.drop_bad++;
    counts.packets++;
    counts.bytes += size(packet.frags);
    const dst = address(eth, 0);
    const src = address(eth, 6);
    if ((src & 1n) === 0n) this.#table.set(rthash(src), { mac: src, port: from });
    const known = (dst & 1n) === 0n ? this.#table.get(rthash(dst)) : undefined;
    if (known?.mac === dst) {
      if (known.port === from) return void counts.drop_nodst++;
      counts.copies++;
      const to = this.ports[known.port]!;
      const r = tx.length === 1 && to.rx.length > 1 ? flowRing(eth, to.rx.length) : ring % to.rx.length;
      return to.rx[r]!.deliver(packet.frags, hdr, to.hdr);
    }
    for (const [i, to] of this.ports.entries()) {
      if (i === from) continue;
      counts.copies++;
      to.rx[0]!.deliver(packet.frags, hdr, to.hdr);
    }
  }
}

const flat = (frags: readonly Uint8Array[]): Uint8Array => Uint8Array.from(Buffer.concat(frags));
const size = (frags: readonly Uint8Array[]): number => frags.reduce((n, f) => n + f.length, 0);
const address = (eth: Uint8Array, at: number): bigint => {
  let value = 0n;
  for (let i = 5; i >= 0; i--) value = (value << 8n) | BigInt(eth[at + i]!);
  return value;
};

/** The ring of a flow: docs/vale.md. `eth`: the packet's slot from its Ethernet header on. */
export function flowRing(eth: Uint8Array, rings: number): number {
  const mask = (1n << 64n) - 1n;
  const mix = (h: bigint): bigint => {
    const m = (h * 0x9e37_79b9_7f4a_7c15n) & mask;
    return m ^ (m >> 29n);
  };
  const word = (at: number, bytes: number): bigint => {
    let value = 0n;
    for (let i = bytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(eth[at + i]!);
    return value;
  };
  const ring = (h: bigint): number => Number(((h >> 32n) * BigInt(rings)) >> 32n);
  let h = mix(word(0, 6) ^ word(6, 6));
  const tagged = eth[12] === 0x81 && eth[13] === 0x00 && eth.length >= 18;
  const l3 = tagged ? 18 : 14;
  const type = eth[l3 - 2]! * 256 + eth[l3 - 1]!;
  let proto = 0n;
  let l4 = 0;
  if (type === 0x0800 && eth.length >= l3 + 20) {
    h = mix(h ^ word(l3 + 12, 4) ^ word(l3 + 16, 4));
    proto = BigInt(eth[l3 + 9]!);
    if ((eth[l3 + 6]! & 0x3f) === 0 && eth[l3 + 7] === 0) l4 = l3 + (eth[l3]! & 15) * 4;
  } else if (type === 0x86dd && eth.length >= l3 + 40) {
    h = mix(h ^ word(l3 + 8, 8) ^ word(l3 + 24, 8));
    h = mix(h ^ word(l3 + 16, 8) ^ word(l3 + 32, 8));
    proto = BigInt(eth[l3 + 6]!);
    l4 = l3 + 40;
  } else return ring(h);
  if (l4 === 0 || (proto !== 6n && proto !== 17n) || eth.length < l4 + 4) return ring(mix(h ^ proto));
  return ring(mix(h ^ proto ^ ((word(l4, 2) ^ word(l4 + 2, 2)) << 8n)));
}

export const rthash = (mac: bigint): number =>
  Number(BigInt.asUintN(48, mac * 0x9e37_79b9_7f4a_7c15n) / (2n ** 48n / BigInt(NM_BDG_HASH)));

function ethernet(frags: readonly Uint8Array[], hdr: number): Uint8Array | undefined {
  const [first, second] = frags;
  const eth = first!.length > hdr ? first!.subarray(hdr) : first!.length === hdr ? second : undefined;
  return eth !== undefined && eth.length >= 14 ? eth : undefined;
}
