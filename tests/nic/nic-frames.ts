/** Numbered frames, for tests of conservation: each says its number, and its bytes are a function of that. */

/** Bytes before the payload: addresses and an EtherType for experiments (or a VLAN tag and that). */
const ETHERTYPE = 0x88b5;
export const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] as const;

/** Writes frame n of `length` bytes into `u8`. @param vlan its tag's TCI, if it has one */
export function writeFrame(u8: Uint8Array, length: number, n: number, vlan?: number): void {
  const view = new DataView(u8.buffer, u8.byteOffset);
  u8.set(BROADCAST);
  u8.set([2, 0, 0, 0, 0, 1], 6);
  let p = 12;
  if (vlan !== undefined) {
    view.setUint16(p, 0x8100);
    view.setUint16(p + 2, vlan);
    p += 4;
  }
  view.setUint16(p, ETHERTYPE);
  view.setUint32(p + 2, n);
  for (let i = p + 6; i < length; i++) u8[i] = (n + 31 * i) & 0xff;
}

/** The number of a frame that `writeFrame` wrote; -1: it is none of ours, -2: it is one, but wrong. */
export function frameNumber(u8: Uint8Array, length: number, vlan?: number): number {
  const view = new DataView(u8.buffer, u8.byteOffset, length);
  let p = 12;
  if (length < 22) return -1;
  if (vlan !== undefined) {
    if (view.getUint16(12) !== 0x8100 || view.getUint16(14) !== vlan) return view.getUint16(12) === ETHERTYPE ? -2 : -1;
    p = 16;
  }
  if (view.getUint16(p) !== ETHERTYPE) return -1;
  const n = view.getUint32(p + 2);
  for (let i = p + 6; i < length; i++) if (u8[i] !== ((n + 31 * i) & 0xff)) return -2;
  return n;
}

/** Counts numbered frames: how many, how many twice or out of order, how many wrong. */
export class FrameCounter {
  frames = 0;
  disorder = 0;
  wrong = 0;
  bytes = 0;
  readonly #vlan: number | undefined;
  #last = -1;

  constructor(vlan?: number) {
    this.#vlan = vlan;
  }

  add(u8: Uint8Array, length: number): void {
    const n = frameNumber(u8, length, this.#vlan);
    if (n === -1) return;
    if (n === -2) {
      this.wrong++;
      return;
    }
    if (n <= this.#last) this.disorder++;
    this.#last = n;
    this.frames++;
    this.bytes += length;
  }
}
