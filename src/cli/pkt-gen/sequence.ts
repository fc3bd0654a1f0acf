/**
 * rxseq: whether packets of txseq arrive one after the other. A number (u32, big endian) is at the beginning of the UDP
 * payload; each rx ring is a sequence of its own, as packets of different rings have no order. Mirrors pkt-gen's rxseq_body.
 */
import { NS_MOREFRAG } from '../../api/index.ts';
import type { PktPort, PktRing } from './run.ts';

const ETHERTYPE_IP = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
/** Bytes of the number. */
export const SEQUENCE_PAYLOAD = 4;
/** Gaps that are printed in a second. */
const PRINTED = 2;

/** What was found. */
export interface SequenceResult {
  /** Times a number was higher than the one that was due, and the numbers passed over. */
  readonly gaps: number;
  readonly lost: number;
  /** Packets with a lower number than the one that was due: late, doubled, or of a sender that began again. */
  readonly outOfOrder: number;
  /** Packets without a number: not IP, or too short. */
  readonly others: number;
}

/** The longest headers in front of a number: VirtIO, Ethernet, IPv6, UDP. */
const MOST = 12 + 14 + 40 + 8 + SEQUENCE_PAYLOAD;

/** The state of one ring. */
interface RingSequence {
  /** The number that is due; -1: any. */
  expected: number;
  /** The beginning of the packet, which may be cut into slots anywhere, and how much of it has come. */
  readonly head: Uint8Array;
  length: number;
}

export class SequenceCheck {
  gaps = 0;
  lost = 0;
  outOfOrder = 0;
  others = 0;
  readonly #rings: readonly RingSequence[];
  readonly #headerLen: number;
  readonly #log: (text: string) => void;
  #second = 0;
  #printed = 0;

  /** @param headerLen bytes of the VirtIO header in front of a packet */
  constructor(rings: number, headerLen: number, log: (text: string) => void) {
    this.#rings = Array.from({ length: rings }, () => ({ expected: -1, head: new Uint8Array(MOST), length: 0 }));
    this.#headerLen = headerLen;
    this.#log = log;
  }

  get result(): SequenceResult {
    const { gaps, lost, outOfOrder, others } = this;
    return { gaps, lost, outOfOrder, others };
  }

  /** Looks at a slot. Slots of a ring come in order. @param r which of the port's rings */
  slot(port: PktPort, r: number, ring: PktRing, i: number): void {
    const state = this.#rings[r]!;
    const { head } = state;
    const at = ring.bufOfs(i);
    const end = Math.min(ring.len(i), MOST - state.length);
    for (let k = 0; k < end; k++) head[state.length++] = port.m.u8[at + k]!;
    if ((ring.flags(i) & NS_MOREFRAG) !== 0) return;
    const number = this.#number(head, state.length);
    state.length = 0;
    if (number < 0) {
      this.others += 1;
      return;
    }
    const { expected } = state;
    state.expected = (number + 1) >>> 0;
    if (number === expected || expected < 0) return;
    const ahead = (number - expected) >>> 0;
    if (ahead < 0x8000_0000) {
      this.gaps += 1;
      this.lost += ahead;
    } else this.outOfOrder += 1;
    this.#print(ahead < 0x8000_0000 ? 'GAP' : 'OUT OF ORDER', expected, number);
  }

  /** The number in a packet that begins with these bytes; -1: none. */
  #number(head: Uint8Array, length: number): number {
    const ether = this.#headerLen;
    const type = length < ether + 14 ? 0 : (head[ether + 12]! << 8) | head[ether + 13]!;
    if (type !== ETHERTYPE_IP && type !== ETHERTYPE_IPV6) return -1;
    const n = ether + 14 + (type === ETHERTYPE_IP ? 20 : 40) + 8;
    if (length < n + SEQUENCE_PAYLOAD) return -1;
    return ((head[n]! << 24) | (head[n + 1]! << 16) | (head[n + 2]! << 8) | head[n + 3]!) >>> 0;
  }

  #print(what: string, expected: number, number: number): void {
    const second = Math.floor(performance.now() / 1000);
    if (second !== this.#second) this.#printed = 0;
    this.#second = second;
    if (this.#printed++ < PRINTED) this.#log(`Sequence ${what}: exp ${expected} found ${number}\n`);
  }
}
