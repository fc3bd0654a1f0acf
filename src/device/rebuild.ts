/**
 * Rebuilding the rings of a client that is gone or was reset (R19). Slots are permuted while a guest runs (zero copy
 * swaps buf_idx), also between ports of one region, and a crashed or hostile guest leaves anything in them. So rings get
 * buffers that no live ring holds, from the private record of what was handed out.
 */
import type { Views } from '../abi/index.ts';
import { netmap_ring, netmap_slot } from '../abi/index.ts';
import type { RegisteredRing, Registration } from '../ports/index.ts';
import { allRings } from '../ports/index.ts';

/** Another device of the same region, and what its rings hold now. */
export interface RegionNeighbour {
  /** Views over the arena that the registration's addresses refer to. */
  readonly m: Views;
  readonly registration: Registration;
  /** Whether a client is connected, who may have moved buffers about. */
  readonly live: boolean;
  /** What the rings were last rebuilt with, in the order of `allRings`; the truth while not live. */
  readonly buffers: readonly (readonly number[])[];
}

/**
 * Buffers for each ring of `own`, in the order of `allRings`: its own record's where nobody else holds them.
 * There are always enough: the region's rings were handed distinct buffers, and others hold at most as many as they
 * have slots.
 */
export function chooseBuffers(own: Registration, neighbours: readonly RegionNeighbour[]): number[][] {
  const held = new Set<number>();
  for (const { m, registration, live, buffers } of neighbours) {
    if (live)
      for (const ring of allRings(registration)) for (const idx of slotBuffers(m, registration, ring)) held.add(idx);
    else for (const ring of buffers) for (const idx of ring) held.add(idx);
  }
  const spare: number[] = [];
  const record = [own, ...neighbours.map((n) => n.registration)].flatMap((r) =>
    allRings(r).map((ring) => ring.buffers),
  );
  const mine = new Set(allRings(own).flatMap((ring) => ring.buffers));
  for (const ring of record) for (const idx of ring) if (!held.has(idx) && !mine.has(idx)) spare.push(idx);
  spare.reverse();
  return allRings(own).map((ring) => ring.buffers.map((idx) => (held.has(idx) ? spare.pop()! : idx)));
}

function slotBuffers(m: Views, r: Registration, ring: RegisteredRing): number[] {
  const slots = r.regionAddr + ring.ringOfs + netmap_ring.size;
  return Array.from({ length: ring.numSlots }, (_, i) => netmap_slot.get.buf_idx(m, slots + i * netmap_slot.size));
}
