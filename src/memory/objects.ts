/**
 * Writing netmap's shared objects (netmap_if, netmap_ring, slots) into a region. All addresses are byte offsets in
 * the arena (or any memory) that the views cover. Control code: runs while the rings concerned are stopped.
 */
import type { Views } from '../abi/index.ts';
import { NETMAP_API, NR_DIR_TX, netmap_if, netmap_ring, netmap_slot } from '../abi/index.ts';

/** What a netmap_if says. `ringOfs`: byte offsets of the rings in the region, all tx, then all rx. */
export interface InterfaceRecord {
  readonly name: string;
  /** Byte offset of the netmap_if in the region. */
  readonly nifpOfs: number;
  readonly txRings: readonly number[];
  readonly rxRings: readonly number[];
  /** First buffer of the list of extra buffers (default 0: none). */
  readonly bufsHead?: number;
}

/**
 * Writes a netmap_if afresh. Host rings are announced (one each way, as netmap does) with ring_ofs 0: any other value
 * is taken as bound by applications (docs/abi.md 3.1).
 * @param region arena address of the region @param bytes size of the netmap_if object, all of which is written
 */
export function writeNetmapIf(m: Views, region: number, bytes: number, record: InterfaceRecord): void {
  const p = region + record.nifpOfs;
  m.u8.fill(0, p, p + bytes);
  const name = new TextEncoder().encode(record.name).subarray(0, netmap_if.fields.ni_name[2] - 1);
  m.u8.set(name, p + netmap_if.ofs.ni_name);
  netmap_if.set.ni_version(m, p, NETMAP_API);
  netmap_if.set.ni_tx_rings(m, p, record.txRings.length);
  netmap_if.set.ni_rx_rings(m, p, record.rxRings.length);
  netmap_if.set.ni_host_tx_rings(m, p, 1);
  netmap_if.set.ni_host_rx_rings(m, p, 1);
  netmap_if.set.ni_bufs_head(m, p, record.bufsHead ?? 0);
  // ring_ofs[]: tx, host tx, rx, host rx
  let entry = p + netmap_if.size;
  for (const rings of [record.txRings, record.rxRings]) {
    for (const ofs of rings) {
      m.u64[entry >>> 3] = BigInt(ofs - record.nifpOfs);
      entry += 8;
    }
    entry += 8;
  }
}

/**
 * Links buffers into a list of extra buffers, as netmap does: the first word of each is the index of the next, 0 at the end.
 * @param buffers address of buffer 0 of the pool
 */
export function writeBufferList(m: Views, buffers: number, bufSize: number, list: readonly number[]): void {
  for (const [i, idx] of list.entries()) m.u32[(buffers + idx * bufSize) >>> 2] = list[i + 1] ?? 0;
}

/** What a ring holds when it is new. */
export interface RingRecord {
  /** Byte offset of the netmap_ring in the region. */
  readonly ringOfs: number;
  readonly dir: number;
  readonly ringId: number;
  readonly numSlots: number;
}

/**
 * Writes a ring and its slots afresh: all indexes at their start (tx: everything free, rx: nothing received), slot i
 * holding buffer `buffers[i]`, length 0.
 * @param bufPoolOfs byte offset of the buffer pool in the region
 */
export function writeRing(
  m: Views,
  region: number,
  bufPoolOfs: number,
  bufSize: number,
  record: RingRecord,
  buffers: ArrayLike<number>,
): void {
  const p = region + record.ringOfs;
  m.u8.fill(0, p, p + netmap_ring.size + record.numSlots * netmap_slot.size);
  netmap_ring.set.buf_ofs(m, p, BigInt(bufPoolOfs - record.ringOfs));
  netmap_ring.set.num_slots(m, p, record.numSlots);
  netmap_ring.set.nr_buf_size(m, p, bufSize);
  netmap_ring.set.ringid(m, p, record.ringId);
  netmap_ring.set.dir(m, p, record.dir);
  netmap_ring.set.tail(m, p, record.dir === NR_DIR_TX ? record.numSlots - 1 : 0);
  for (let i = 0; i < record.numSlots; i++) {
    netmap_slot.set.buf_idx(m, p + netmap_ring.size + i * netmap_slot.size, buffers[i]!);
  }
}
