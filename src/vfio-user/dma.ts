/**
 * The client's memory as one device sees it: which DMA addresses (iova) are backed by which bytes of which file. The
 * table owns the descriptors: every DMA_MAP brings its own, closed when the last of its addresses is unmapped.
 * Addresses and sizes are 64-bit; no sum here wraps. Whether a file may be trusted (seals, size: R1) is for the user of
 * a descriptor to check before mapping it.
 */
import { closeFd, errno } from '../os/index.ts';
import { VFIO_USER_F_DMA_REGION_WRITE, VfioUserError } from './messages.ts';

export interface DmaMap {
  readonly iova: bigint;
  /** Bytes, more than 0; iova + size is at most 2^64. */
  readonly size: bigint;
  /** VFIO_USER_F_DMA_REGION_*. */
  readonly flags: number;
  /** Where in the file the first byte is. */
  readonly offset: bigint;
  /** Absent for memory that cannot be mapped (ROMs). */
  readonly fd: number | undefined;
}

export interface DmaUnmap {
  readonly iova: bigint;
  readonly size: bigint;
  readonly flags: number;
}

/** Where to map a range from. The descriptor stays the table's. */
export interface DmaRange {
  readonly fd: number;
  /** Bytes, exact. */
  readonly fileOffset: number;
  readonly writable: boolean;
}

/** A descriptor shared by the pieces that unmapping left of one mapping. */
interface File {
  readonly fd: number | undefined;
  pieces: number;
}

/** Addresses start (included) to end (excluded). */
interface Piece {
  readonly start: bigint;
  readonly end: bigint;
  readonly flags: number;
  /** File offset of `start`. */
  readonly offset: bigint;
  readonly file: File;
}

/** Most mappings of one client, if not said otherwise: bounds the descriptors that it can make us hold. */
export const DMA_MAPS_MAX = 4096;

export class DmaTable {
  readonly #max: number;
  /** Ordered by address, not overlapping. */
  #pieces: Piece[] = [];

  /** @param max most mappings, and pieces that unmapping left of them, held at a time */
  constructor(max = DMA_MAPS_MAX) {
    this.#max = max;
  }

  get length(): number {
    return this.#pieces.length;
  }

  /**
   * Takes over a mapping with its descriptor, which is closed if the mapping is refused.
   * @throws VfioUserError EEXIST if it overlaps one that is there, ENOSPC if there are too many
   */
  map(m: DmaMap): void {
    const end = m.iova + m.size;
    const at = this.#firstEndingAfter(m.iova);
    const next = this.#pieces[at];
    const overlaps = next !== undefined && next.start < end;
    if (overlaps || this.#pieces.length >= this.#max) {
      if (m.fd !== undefined) closeFd(m.fd);
      if (overlaps) throw new VfioUserError(errno.EEXIST, `DMA_MAP of ${range(m.iova, end)} overlaps an earlier one`);
      throw new VfioUserError(errno.ENOSPC, `DMA_MAP: ${this.#max} mappings are there already`);
    }
    const file = { fd: m.fd, pieces: 1 };
    this.#pieces.splice(at, 0, { start: m.iova, end, flags: m.flags, offset: m.offset, file });
  }

  /**
   * Takes addresses out: whole mappings, parts of them, or none at all. Returns how many mappings it touched. Their
   * descriptors are closed with their last byte; whoever mapped them keeps its own mapping of the memory until it ends it.
   * @throws VfioUserError ENOSPC if it would cut a mapping in two, and there are too many; nothing is taken out then
   */
  unmap(iova: bigint, size: bigint): number {
    if (size === 0n) return 0;
    const end = iova + size;
    const from = this.#firstEndingAfter(iova);
    const left: Piece[] = [];
    let to = from;
    for (let p = this.#pieces[to]; p !== undefined && p.start < end; p = this.#pieces[++to]) {
      if (p.start < iova) left.push({ ...p, end: iova });
      if (p.end > end) left.push({ ...p, start: end, offset: p.offset + (end - p.start) });
    }
    // Only a hole in one piece makes more of them than there were.
    if (left.length > to - from && this.#pieces.length >= this.#max) {
      throw new VfioUserError(
        errno.ENOSPC,
        `DMA_UNMAP of ${range(iova, end)}: ${this.#max} mappings are there already`,
      );
    }
    const gone = this.#pieces.splice(from, to - from, ...left);
    for (const p of left) p.file.pieces++;
    for (const p of gone) drop(p.file);
    return gone.length;
  }

  /** The file bytes behind addresses that lie, all of them, in one mapping with a descriptor. */
  lookup(iova: bigint, size: bigint): DmaRange | undefined {
    const p = this.#pieces[this.#firstEndingAfter(iova)];
    if (p === undefined || p.file.fd === undefined || iova < p.start || iova + size > p.end) return undefined;
    return {
      fd: p.file.fd,
      fileOffset: Number(p.offset + (iova - p.start)),
      writable: (p.flags & VFIO_USER_F_DMA_REGION_WRITE) !== 0,
    };
  }

  /** Forgets everything and closes all descriptors. */
  clear(): void {
    for (const p of this.#pieces) drop(p.file);
    this.#pieces = [];
  }

  /** Index of the first piece whose end is above an address. */
  #firstEndingAfter(iova: bigint): number {
    let lo = 0;
    let hi = this.#pieces.length;
    while (lo < hi) {
      const mid = (lo + hi) >>> 1;
      if (this.#pieces[mid]!.end > iova) hi = mid;
      else lo = mid + 1;
    }
    return lo;
  }
}

function drop(file: File): void {
  if (--file.pieces === 0 && file.fd !== undefined) closeFd(file.fd);
}

const range = (start: bigint, end: bigint): string => `[0x${start.toString(16)}, 0x${end.toString(16)})`;
