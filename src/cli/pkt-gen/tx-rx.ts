/**
 * pkt-gen's tx and rx: netmap pkt-gen's sender_body and receiver_body. A turn is one poll and one batch per ring; per
 * packet there is a slot to write or read, and nothing is allocated.
 */
import { setTimeout } from 'node:timers/promises';
import { NS_BUF_CHANGED, NS_MOREFRAG, POLLIN, POLLOUT } from '../../api/index.ts';
import { BUF_CHANGED, LEN, LEN_FLAGS, MOREFRAG, SLOT_WORDS } from '../slot-words.ts';
import type { Packet } from './frame.ts';
import { dumpSlot, type PktPort, type PktRing, type Run } from './run.ts';
import type { SequenceCheck } from './sequence.ts';

/** How long a packet's slots are: the first `frags - 1` have `fragSize` bytes, the last has the rest. */
interface Pieces {
  readonly frags: number;
  readonly fragSize: number;
  /** The packet's bytes, cut; one piece only: empty (Frame.copyTo is used). */
  readonly bytes: readonly Uint8Array[];
}

/** Cuts a packet as pkt-gen does: in `-F` pieces, more if they would be longer than `-M` or a buffer. */
function cut(frame: Packet, wanted: number, fragSize: number, bufSize: number): Pieces {
  const longest = fragSize > 0 ? Math.min(fragSize, bufSize) : bufSize;
  let frags = wanted;
  const { slotLen } = frame;
  let piece = Math.floor(slotLen / wanted);
  if (Math.ceil(slotLen / wanted) > longest || piece === 0) {
    piece = longest;
    frags = Math.ceil(slotLen / piece);
  }
  if (frags === 1) return { frags, fragSize: slotLen, bytes: [] };
  const bytes = Array.from({ length: frags }, (_, i) =>
    frame.bytes.subarray(i * piece, i === frags - 1 ? slotLen : (i + 1) * piece),
  );
  return { frags, fragSize: piece, bytes };
}

/**
 * Fills up to `limit` packets into a ring and moves head; returns how many. Buffers are written only where the packet is
 * not yet in them (NS_BUF_CHANGED, set on all slots at the start) or where it changes.
 */
function sendPackets(
  port: PktPort,
  ring: PktRing,
  frame: Packet,
  pieces: Pieces,
  limit: number,
  changing: boolean,
  dump: boolean,
): number {
  const { m } = port;
  const { frags } = pieces;
  const size = frame.slotLen;
  let head = ring.head;
  let space = ring.space();
  let sent = 0;
  for (; sent < limit && space >= frags; sent++, space -= frags) {
    if (frags === 1) {
      if (changing || (ring.flags(head) & NS_BUF_CHANGED) !== 0) {
        frame.copyTo(m, ring.bufOfs(head));
        if (changing) frame.advance();
      }
      ring.setLen(head, size);
      ring.setFlags(head, 0);
      if (dump) process.stdout.write(dumpSlot(port, ring, head));
      head = ring.next(head);
    } else {
      for (let k = 0; k < frags; k++) {
        const piece = pieces.bytes[k]!;
        m.u8.set(piece, ring.bufOfs(head));
        ring.setLen(head, piece.length);
        ring.setFlags(head, k < frags - 1 ? NS_MOREFRAG : 0);
        if (dump) process.stdout.write(dumpSlot(port, ring, head));
        head = ring.next(head);
      }
      if (changing) frame.advance();
    }
  }
  if (sent > 0) {
    ring.head = head;
    ring.cur = head;
  }
  // Not all fitted: wake up only when the host frees slots.
  if (sent < limit) ring.cur = ring.tail;
  return sent;
}

/**
 * The same for packets of one slot that do not change. A slot that holds what it should is not written: so its cache line stays
 * where it is read too.
 */
function sendSame(port: PktPort, ring: PktRing, frame: Packet, limit: number): number {
  const { u32 } = port.m;
  const { numSlots } = ring;
  const space = ring.space();
  const sent = space < limit ? space : limit;
  const wanted = frame.slotLen;
  let head = ring.head;
  for (let left = sent; left > 0; ) {
    const n = left < numSlots - head ? left : numSlots - head;
    const first = (ring.slotOfs(head) >>> 2) + LEN_FLAGS;
    const end = first + n * SLOT_WORDS;
    for (let w = first; w !== end; w += SLOT_WORDS) {
      const is = u32[w]!;
      if (is === wanted) continue;
      if ((is & BUF_CHANGED) !== 0) frame.copyTo(port.m, ring.bufOfs(head + (w - first) / SLOT_WORDS));
      u32[w] = wanted;
    }
    left -= n;
    head = head + n === numSlots ? 0 : head + n;
  }
  if (sent > 0) {
    ring.head = head;
    ring.cur = head;
  }
  if (sent < limit) ring.cur = ring.tail; // as above
  return sent;
}

/** Sends until the count is reached or the run is cancelled, then waits until the host has taken everything. */
export async function txLoop(port: PktPort, run: Run, frame: Packet): Promise<void> {
  const { job, counters } = run;
  const { burst, rate, minSize, size, dump } = job;
  const pieces = cut(frame, job.frags, job.fragSize, port.bufSize);
  if (minSize > 0 && pieces.frags > 1)
    throw new Error(`-l ${size}: random sizes have to fit a buffer (${port.bufSize})`);
  if (port.txRings.some((ring) => pieces.frags >= ring.numSlots))
    throw new Error(`a packet of ${frame.size} bytes needs more slots than the ring has`);
  const ranges = [job.src, job.dst].some((r) => r.ip0 !== r.ip1 || r.port0 !== r.port1);
  const random = job.randomSrc || job.randomDst;
  const numbered = job.func === 'txseq';
  const varied = job.packetFile === undefined && (ranges || random || minSize > 0 || numbered);
  const changing = !job.rubbish && (varied || job.alwaysCopy);
  const same = pieces.frags === 1 && !changing && !dump;
  // Packets of different rings have no order: numbered ones go through the first.
  const rings = numbered ? port.txRings.slice(0, 1) : port.txRings;
  for (const ring of port.txRings)
    for (let i = 0; i < ring.numSlots; i++) ring.setFlags(i, job.rubbish ? 0 : NS_BUF_CHANGED);
  const period = rate > 0 ? (burst / rate) * 1000 : 0;
  let next = performance.now();
  let budget = 0;
  counters.begin = next;
  for (;;) {
    const now = performance.now();
    if (run.due(now)) await run.breathe(now);
    if (run.over(counters.pkts)) break;
    if (rate > 0 && budget <= 0) {
      budget = burst;
      next += period;
      await run.until(next);
      if (run.cancelled) break;
    }
    if (port.poll(POLLOUT, run.pollTimeout(now)) === 0) continue;
    for (let r = 0; r < rings.length; r++) {
      const ring = rings[r]!;
      let limit = rate > 0 ? budget : burst;
      if (job.count > 0) limit = Math.min(limit, job.count - counters.pkts);
      if (limit <= 0) break;
      if (minSize > 0) frame.setSize(minSize + Math.floor(Math.random() * (size - minSize)));
      const sent = same
        ? sendSame(port, ring, frame, limit)
        : sendPackets(port, ring, frame, pieces, limit, changing, dump);
      if (sent === 0) continue;
      counters.pkts += sent;
      counters.bytes += sent * frame.size;
      counters.events += 1;
      budget -= sent;
    }
  }
  await flush(port, run);
  counters.end = performance.now();
}

/** How long the end of sending is waited for awake, ms. */
const AWAKE_MS = 10;

/**
 * Waits until the host has sent everything (nm_tx_pending), or 2 s after the end was asked for by a signal. After a
 * second it says so: a pipe holds what is sent until somebody receives.
 */
async function flush(port: PktPort, run: Run): Promise<void> {
  port.txsync();
  const begin = performance.now();
  let giveUp = Number.POSITIVE_INFINITY;
  let sayAt = begin + 1000;
  for (const ring of port.txRings) {
    while (ring.next(ring.tail) !== ring.head) {
      const now = performance.now();
      if (run.cancelled) giveUp = Math.min(giveUp, now + 2000);
      if (now > giveUp) return;
      if (now > sayAt) {
        sayAt = Number.POSITIVE_INFINITY;
        run.log('waiting until all packets are taken: does anybody receive?\n');
      }
      await run.breathe(now);
      if (now - begin > AWAKE_MS) await setTimeout(1);
      port.txsync();
    }
  }
}

/** Takes up to `limit` slots out of ring r; returns the complete packets. */
function receivePackets(port: PktPort, r: number, limit: number, run: Run, check: SequenceCheck | undefined): number {
  const ring = port.rxRings[r]!;
  const space = ring.space();
  const n = space < limit ? space : limit;
  const { u32 } = port.m;
  const { numSlots } = ring;
  const { dump } = run.job;
  let head = ring.head;
  let bytes = 0;
  let complete = 0;
  for (let left = n; left > 0; ) {
    const part = left < numSlots - head ? left : numSlots - head;
    const first = (ring.slotOfs(head) >>> 2) + LEN_FLAGS;
    const end = first + part * SLOT_WORDS;
    for (let w = first; w !== end; w += SLOT_WORDS) {
      const is = u32[w]!;
      bytes += is & LEN;
      if ((is & MOREFRAG) === 0) complete++;
    }
    if (dump || check !== undefined) {
      for (let i = head; i < head + part; i++) {
        if (dump) process.stdout.write(dumpSlot(port, ring, i));
        check?.slot(port, r, ring, i);
      }
    }
    left -= part;
    head = head + part === numSlots ? 0 : head + part;
  }
  ring.head = head;
  ring.cur = head;
  run.counters.bytes += bytes;
  return complete;
}

/**
 * Receives until the count is reached, the run is cancelled or (-W) a second was silent after the first packet.
 * @param check rxseq: looks at each packet's number
 */
export async function rxLoop(port: PktPort, run: Run, check?: SequenceCheck): Promise<void> {
  const { job, counters } = run;
  for (;;) {
    const now = performance.now();
    if (run.due(now)) await run.breathe(now);
    if (run.over(counters.pkts)) break;
    if (port.poll(POLLIN, run.pollTimeout(now)) === 0) {
      if (job.endOnSilence && counters.events > 0 && now - counters.end >= 1000) break;
      continue;
    }
    if (counters.events === 0) counters.begin = now;
    let free = 0;
    let got = 0;
    for (let r = 0; r < port.rxRings.length; r++) {
      const ring = port.rxRings[r]!;
      free += (ring.head - ring.tail + ring.numSlots) % ring.numSlots;
      got += receivePackets(port, r, job.burst, run, check);
    }
    counters.pkts += got;
    if (got > 0) counters.events += 1;
    counters.end = now;
    if (free < counters.minSpace) counters.minSpace = free;
  }
  // Gives the last slots back.
  port.poll(POLLIN, 0);
}
