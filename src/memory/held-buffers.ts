/**
 * The buffers that a ring holds at this moment: what its slots say of those that are its user's, and what the kernel has for it.
 * To be asked between two turns of the ring's datapath thread: positions move. docs/memory.md
 */
import type { Views } from '../abi/index.ts';
import { kring, NR_DIR_TX, netmap_ring, netmap_slot, nic_queue } from '../abi/index.ts';

/** Indexes of the buffers that belong to a ring, as its slots say: not to be trusted (R5). @param k its kring */
export function heldBuffers(m: Views, k: number): number[] {
  const n = kring.get.num_slots(m, k);
  const peer = kring.get.peer(m, k);
  const tx = kring.get.dir(m, k) === NR_DIR_TX;
  if (kring.get.shadow(m, k) !== 0) {
    // A pipe: slots up to where the other end's begin. A tx ring's user has at least the one that stays empty.
    const from = kring.get.hwcur(m, k);
    const count = distance(from, kring.get.hwcur(m, peer), n);
    return slots(m, k, from, count === 0 && tx ? n : count);
  }
  // An interface's ring that receives: in a switch the one whose frames the switch sends on.
  const hosted = peer !== 0 && nic_queue.get.hosted(m, peer) !== 0;
  if (peer === 0 || tx !== hosted) return slots(m, k, 0, n);
  // Slots that its user has not released; the others' buffers are with the kernel.
  const from = hosted ? nic_queue.get.refilled(m, peer) : kring.get.hwcur(m, k);
  const to = hosted ? nic_queue.get.tx_head(m, peer) : kring.get.hwtail(m, k);
  return [...slots(m, k, from, distance(from, to, n)), ...filled(m, k, peer)];
}

const distance = (a: number, b: number, n: number): number => (b - a + n) % n;

function slots(m: Views, k: number, from: number, count: number): number[] {
  const n = kring.get.num_slots(m, k);
  const first = kring.get.ring(m, k) + netmap_ring.size;
  return Array.from({ length: count }, (_, i) =>
    netmap_slot.get.buf_idx(m, first + ((from + i) % n) * netmap_slot.size),
  );
}

/** What the kernel has of a nic_queue's fill ring (src/datapath/nic.ts). */
function filled(m: Views, k: number, q: number): number[] {
  const desc = nic_queue.get.fill_desc(m, q);
  const mask = nic_queue.get.mask(m, q);
  const given = nic_queue.get.rx_cons(m, q);
  const base = kring.get.buf_base(m, k) - nic_queue.get.umem(m, q) - nic_queue.get.headroom(m, q);
  return Array.from({ length: (nic_queue.get.fill_prod(m, q) - given) >>> 0 }, (_, i) => {
    const address = m.u32[(desc + 8 * (((given + i) & mask) >>> 0)) >>> 2]!;
    return (address - base) / kring.get.buf_size(m, k);
  });
}
