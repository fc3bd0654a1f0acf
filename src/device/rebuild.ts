/**
 * Rebuilding the rings of a client that is gone or was reset (R19; docs/memory.md). Slots are permuted while a guest runs
 * (zero copy swaps buf_idx), also between ports of one region, and a crashed or hostile guest leaves anything in them. So
 * rings get buffers that no live ring holds: their own ledger's where possible, else others', whose ledgers get the
 * displaced ones in exchange: the ledgers of a region stay disjoint, and say what is to be given back in the end.
 *
 * Extra buffers are a ring without slots: who has them while their owner lives is his secret, so none of them is given to
 * others meanwhile.
 *
 * Rings of a pipe share their buffers with the other end: of each slot, one of the two ends is the holder
 * (docs/pipes.md). They have to be frozen while they are rebuilt.
 */
import type { Views } from '../abi/index.ts';
import { kring, NETMAP_FIRST_BUF, NR_DIR_RX, NR_DIR_TX, NS_MOREFRAG, netmap_ring, netmap_slot } from '../abi/index.ts';
import { heldBuffers, writeRing } from '../memory/index.ts';
import type { Holdings, PortRing } from '../ports/index.ts';
import { allRings, ledgerOf, writeExtraBufs } from '../ports/index.ts';

/** Somebody else who has rings in the region. */
export interface RegionNeighbour {
  /** Views over the arena that the holdings' addresses refer to. */
  readonly m: Views;
  readonly holdings: Holdings;
  /** Whether he is there, and may have moved buffers about. */
  readonly live: boolean;
  /** Then: what its rings hold, by kring, as their datapath thread said (else their slots are read now). */
  readonly held?: ReadonlyMap<number, readonly number[]>;
}

/** A ring somewhere, and whether its slots (live) or the private records say what it holds. */
interface Holder extends RegionNeighbour {
  readonly ring: PortRing;
}

const IDX_MASK = 0xffffffffn;

/**
 * Puts right what somebody's rings hold, and their slots.
 * @param own the rings are stopped, those of a pipe frozen @param neighbours all others who have rings in the region
 */
export function rebuildRings(m: Views, own: Holdings, neighbours: readonly RegionNeighbour[]): void {
  const mine = ringsOf(own).map((ring): Holder => ({ m, holdings: own, ring, live: false }));
  const others = neighbours.flatMap((n) => ringsOf(n.holdings).map((ring): Holder => ({ ...n, ring })));
  others.push(...absentPeers([...mine, ...others]));
  const held = new Set<number>();
  for (const holder of others) for (const idx of heldBy(holder)) held.add(idx);

  // Own buffers where nobody else has them, then ones that nobody has.
  const taken = new Set<number>();
  const chosen = mine.map((holder) =>
    ownedSlots(holder).map((k) => {
      const idx = holds(holder, k);
      if (!isBuffer(idx, own) || held.has(idx) || taken.has(idx)) return { k, idx: -1 };
      taken.add(idx);
      return { k, idx };
    }),
  );
  const ledgers = new Map<string, Holder>();
  for (const holder of [...mine, ...others]) ledgers.set(ledgerKey(holder), holder);
  const spare = [...ledgers.values()]
    .filter((h) => !(h.live && isExtra(h.ring)))
    .flatMap((h) => ledgerOf(h.m, h.ring))
    .filter((i) => !held.has(i) && !taken.has(i));
  spare.reverse();
  const lost = new Map<PortRing, Set<number>>();
  for (const [r, slots] of chosen.entries()) {
    for (const slot of slots) {
      if (slot.idx >= 0) continue;
      // Positions of other pipes move while they are read: if that leaves too few, a buffer of one's own will do.
      slot.idx = spare.pop() ?? ledgerOf(m, mine[r]!.ring).find((idx) => !taken.has(idx)) ?? NETMAP_FIRST_BUF;
      taken.add(slot.idx);
      const { ring } = mine[r]!;
      lost.set(ring, (lost.get(ring) ?? new Set()).add(slot.k));
    }
  }

  for (const [r, holder] of mine.entries()) {
    const { ring } = holder;
    if (isExtra(ring)) continue;
    if (ring.pair === undefined) {
      const buffers = chosen[r]!.map((slot) => slot.idx);
      writeRing(m, own.regionAddr, own.bufPoolOfs, own.bufSize, ring, buffers);
    } else writePairedRing(m, own, ring, chosen[r]!, lost.get(ring) ?? new Set());
  }
  for (const [r, holder] of mine.entries()) {
    const contents = new Set(chosen[r]!.map((slot) => slot.idx));
    if (holder.ring.pair !== undefined) {
      const peer = others.find((h) => h.m === m && h.ring.kring === holder.ring.pair!.peer)!;
      for (const idx of heldBy(peer)) contents.add(idx);
    }
    settle(holder, contents, ledgers);
  }
  writeExtraBufs(m, own);
}

/** Somebody's rings, and his extra buffers as one more. */
function ringsOf(holdings: Holdings): PortRing[] {
  const { extra } = holdings;
  const rings = [...allRings(holdings)];
  if (extra !== undefined) rings.push({ ...extra, ringOfs: NO_RING, kring: 0, ringId: 0, dir: NR_DIR_RX });
  return rings;
}

const NO_RING = -1;
const isExtra = (ring: PortRing): boolean => ring.ringOfs === NO_RING;

/** Identifies a private address among all arenas. */
const arenaIds = new WeakMap<Views, number>();
let arenas = 0;
function privateKey(m: Views, address: number): string {
  let id = arenaIds.get(m);
  if (id === undefined) arenaIds.set(m, (id = arenas++));
  return `${id} ${address}`;
}

const isBuffer = (idx: number, r: Holdings): boolean => idx >= NETMAP_FIRST_BUF && idx < r.numBufs;
const ledgerKey = ({ m, ring }: Holder): string => privateKey(m, ring.ledger);

/** The other ends of pipes that no device serves: they hold what their records say. */
function absentPeers(known: readonly Holder[]): Holder[] {
  const seen = new Set(known.map((h) => privateKey(h.m, h.ring.kring)));
  return known.flatMap((h) => {
    const { pair } = h.ring;
    if (pair === undefined || seen.has(privateKey(h.m, pair.peer))) return [];
    const dir = 1 - h.ring.dir;
    const ring = { ...h.ring, dir, kring: pair.peer, pair: { ...pair, peer: h.ring.kring } };
    return [{ m: h.m, holdings: h.holdings, ring, live: false }];
  });
}

/** What somebody else's ring holds: who lives may have moved buffers, so that only slots say it. */
function heldBy(holder: Holder): readonly number[] {
  const { m, ring, live, held } = holder;
  if (!live) return ownedSlots(holder).map((k) => holds(holder, k));
  return isExtra(ring) ? [] : (held?.get(ring.kring) ?? heldBuffers(m, ring.kring));
}

/** The slots of a ring whose user is gone that are his: all, or his side of a pipe. */
function ownedSlots({ m, ring }: Holder): number[] {
  const n = ring.numSlots;
  if (ring.pair === undefined) return Array.from({ length: n }, (_, k) => k);
  const mine = kring.get.hwcur(m, ring.kring);
  const theirs = kring.get.hwcur(m, ring.pair.peer);
  // A tx ring's user holds at least the slot that stays empty.
  let count = (theirs - mine + n) % n;
  if (count === 0 && ring.dir === NR_DIR_TX) count = n;
  return Array.from({ length: count }, (_, i) => (mine + i) % n);
}

/** The buffer at slot k of such a ring. */
function holds({ m, ring }: Holder, k: number): number {
  if (ring.pair !== undefined) return Number(shadowWord(m, ring, k) & IDX_MASK);
  return m.u32[(ring.ledger >>> 2) + k]!;
}

const shadowWord = (m: Views, ring: PortRing, k: number): bigint => m.u64[ring.pair!.shadow / 8 + k]!;

/** Words of a slot: flags in the high 16 bits, then len, then buf_idx. */
const wordLen = (w: bigint): number => Number((w >> 32n) & 0xffffn);
const wordFlags = (w: bigint): number => Number(w >> 48n);

/**
 * Writes a ring of a pipe. What waits for its receiver stays as it was sent, except where its buffer had to be replaced
 * (`lost`): that packet arrives as empty slots and is counted. The sender's slots are free ones.
 */
function writePairedRing(
  m: Views,
  own: Holdings,
  ring: PortRing,
  chosen: readonly { readonly k: number; readonly idx: number }[],
  lost: ReadonlySet<number>,
): void {
  const shadow = ring.pair!.shadow / 8;
  const tx = ring.dir === NR_DIR_TX;
  const gone = tx ? new Set(chosen.map((slot) => slot.k)) : wholePackets(m, ring, chosen, lost);
  for (const { k, idx } of chosen) m.u64[shadow + k] = gone.has(k) ? BigInt(idx) : shadowWord(m, ring, k);
  const buffers = Array.from({ length: ring.numSlots }, (_, k) => Number(shadowWord(m, ring, k) & IDX_MASK));
  writeRing(m, own.regionAddr, own.bufPoolOfs, own.bufSize, ring, buffers);
  const at = own.regionAddr + ring.ringOfs;
  const hwcur = kring.get.hwcur(m, ring.kring);
  netmap_ring.set.head(m, at, hwcur);
  netmap_ring.set.cur(m, at, hwcur);
  netmap_ring.set.tail(m, at, kring.get.hwtail(m, ring.kring));
  for (let k = 0; k < ring.numSlots; k++) {
    const slot = at + netmap_ring.size + k * netmap_slot.size;
    netmap_slot.set.len(m, slot, wordLen(shadowWord(m, ring, k)));
    netmap_slot.set.flags(m, slot, wordFlags(shadowWord(m, ring, k)));
  }
}

/** All slots of the packets that have a slot in `lost`; these packets are counted. */
function wholePackets(
  m: Views,
  ring: PortRing,
  chosen: readonly { readonly k: number }[],
  lost: ReadonlySet<number>,
): Set<number> {
  const gone = new Set<number>();
  let packet: number[] = [];
  let packets = 0n;
  for (const [i, { k }] of chosen.entries()) {
    packet.push(k);
    if ((wordFlags(shadowWord(m, ring, k)) & NS_MOREFRAG) !== 0 && i + 1 < chosen.length) continue;
    if (packet.some((slot) => lost.has(slot))) {
      for (const slot of packet) gone.add(slot);
      packets++;
    }
    packet = [];
  }
  kring.set.drop_stopped(m, ring.kring, kring.get.drop_stopped(m, ring.kring) + packets);
  return gone;
}

/** Makes a ring's ledger say what it now holds: entries it no longer holds change places with those of other ledgers. */
function settle(holder: Holder, contents: ReadonlySet<number>, ledgers: ReadonlyMap<string, Holder>): void {
  const ledger = ledgerOf(holder.m, holder.ring);
  const entries = new Set(ledger);
  const surplus = [...ledger.keys()].filter((i) => !contents.has(ledger[i]!));
  const foreign = new Set([...contents].filter((idx) => !entries.has(idx)));
  if (foreign.size === 0) return;
  const key = ledgerKey(holder);
  for (const [other, h] of ledgers) {
    if (other === key) continue;
    const at = h.ring.ledger >>> 2;
    for (let i = 0; i < h.ring.numSlots; i++) {
      const idx = h.m.u32[at + i]!;
      if (!foreign.has(idx)) continue;
      const mine = surplus.pop();
      if (mine === undefined) return;
      h.m.u32[at + i] = ledger[mine]!;
      holder.m.u32[(holder.ring.ledger >>> 2) + mine] = idx;
    }
  }
}
