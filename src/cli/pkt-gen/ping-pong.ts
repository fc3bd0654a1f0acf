/**
 * pkt-gen's ping and pong: netmap pkt-gen's ping_body and pong_body. A ping carries, after the headers, its number (u32)
 * and the time it was sent (u32 seconds, u32 nanoseconds), as pkt-gen's do; pong sends the packet back with the Ethernet
 * and IPv4 addresses exchanged.
 */
import { POLLIN, POLLOUT } from '../../api/index.ts';
import { type Frame, PAYLOAD_OFS } from './frame.ts';
import { PING_PAYLOAD } from './options.ts';
import { RttHistogram } from './rtt.ts';
import { dumpSlot, type PktPort, type PktRing, type Run } from './run.ts';

const PING_END = PAYLOAD_OFS + PING_PAYLOAD;
/** How long ping waits for answers before it sends again, as pkt-gen does. */
const LOST_MS = 3000;
/** How long answers that are still missing are waited for at the end. */
const LAST_MS = 1000;

/** Stores a u32 at a multiple of 2 (the payload begins at 42). */
function put32(port: PktPort, at: number, value: number): void {
  port.m.u16[at >>> 1] = value;
  port.m.u16[(at + 2) >>> 1] = value >>> 16;
}

function get32(port: PktPort, at: number): number {
  return port.m.u16[at >>> 1]! + port.m.u16[(at + 2) >>> 1]! * 0x10000;
}

/** Sends bursts and waits for their answers. @returns the round trips */
export async function pingLoop(port: PktPort, run: Run, frame: Frame): Promise<RttHistogram> {
  const { job, counters } = run;
  const total = new RttHistogram();
  const recent = new RttHistogram();
  const ring = port.txRings[0]!;
  const period = job.rate > 0 ? (job.burst / job.rate) * 1000 : 0;
  let next = performance.now();
  counters.begin = next;
  while (!run.over(counters.pkts)) {
    if (period > 0) {
      next += period;
      await run.until(next);
    }
    const left = job.count > 0 ? job.count - counters.pkts : Number.POSITIVE_INFINITY;
    const limit = Math.min(job.burst, left);
    const sent = sendPings(port, ring, frame, limit, counters.pkts, job.dump);
    counters.pkts += sent;
    counters.bytes += sent * frame.size;
    if (sent > 0) counters.events += 1;
    port.txsync();
    await collect(port, run, recent, total, performance.now() + LOST_MS, total.count + recent.count + sent);
    if (sent === 0) port.poll(POLLOUT, 1);
  }
  await collect(port, run, recent, total, performance.now() + LAST_MS, counters.pkts);
  total.merge(recent);
  counters.end = performance.now();
  return total;
}

function sendPings(port: PktPort, ring: PktRing, frame: Frame, limit: number, first: number, dump: boolean): number {
  let head = ring.head;
  const n = Math.min(limit, ring.space());
  for (let i = 0; i < n; i++) {
    const at = ring.bufOfs(head);
    frame.copyTo(port.m, at);
    put32(port, at + PAYLOAD_OFS, first + i);
    const now = performance.now();
    const seconds = Math.floor(now / 1000);
    put32(port, at + PAYLOAD_OFS + 4, seconds);
    put32(port, at + PAYLOAD_OFS + 8, Math.round((now - seconds * 1000) * 1e6));
    ring.setLen(head, frame.size);
    ring.setFlags(head, 0);
    if (dump) process.stdout.write(dumpSlot(port, ring, head));
    head = ring.next(head);
  }
  ring.head = head;
  ring.cur = head;
  return n;
}

/** Takes answers until `wanted` have come in all, `end` (ms) is over or the run is cancelled. */
async function collect(
  port: PktPort,
  run: Run,
  recent: RttHistogram,
  total: RttHistogram,
  end: number,
  wanted: number,
): Promise<void> {
  for (;;) {
    const now = performance.now();
    if (run.due(now)) {
      const report = run.reportDue(now);
      await run.breathe(now, recent);
      if (report) {
        total.merge(recent);
        recent.reset();
      }
    }
    if (run.cancelled || now >= end || total.count + recent.count >= wanted) return;
    if (port.poll(POLLIN, run.pollTimeout(now)) === 0) continue;
    for (let r = 0; r < port.rxRings.length; r++) takeAnswers(port, port.rxRings[r]!, recent, run);
  }
}

/** Takes what is in a ring. Packets that cannot be answers to pings of this run are passed over. */
function takeAnswers(port: PktPort, ring: PktRing, rtt: RttHistogram, run: Run): void {
  let head = ring.head;
  const n = ring.space();
  for (let i = 0; i < n; i++) {
    if (run.job.dump) process.stdout.write(dumpSlot(port, ring, head));
    if (ring.len(head) >= PING_END) {
      const at = ring.bufOfs(head) + PAYLOAD_OFS;
      const now = performance.now();
      const sentMs = get32(port, at + 4) * 1000 + get32(port, at + 8) / 1e6;
      const ours = get32(port, at) < run.counters.pkts && sentMs >= run.counters.begin - 1 && sentMs <= now;
      if (ours) rtt.add((now - sentMs) * 1e6);
    }
    head = ring.next(head);
  }
  ring.head = head;
  ring.cur = head;
}

/** Answers pings until the count is reached or the run is cancelled. */
export async function pongLoop(port: PktPort, run: Run): Promise<void> {
  const { counters } = run;
  const txRing = port.txRings[0]!;
  counters.begin = performance.now();
  for (;;) {
    const now = performance.now();
    if (run.due(now)) await run.breathe(now);
    if (run.over(counters.pkts)) break;
    if (port.poll(POLLIN, run.pollTimeout(now)) === 0) continue;
    let answered = 0;
    for (let r = 0; r < port.rxRings.length; r++) answered += answer(port, port.rxRings[r]!, txRing, run);
    port.txsync();
    counters.pkts += answered;
    if (answered > 0) counters.events += 1;
  }
  counters.end = performance.now();
}

/** Sends back what is in an rx ring; what does not fit the tx ring is dropped, as pkt-gen does. */
function answer(port: PktPort, rx: PktRing, tx: PktRing, run: Run): number {
  let rxHead = rx.head;
  let txHead = tx.head;
  let room = tx.space();
  const n = rx.space();
  let answered = 0;
  for (let i = 0; i < n; i++) {
    if (room > 0) {
      // Whoever has the region may write any length; what is copied ends with the buffer.
      const len = Math.min(rx.len(rxHead), port.bufSize);
      if (run.job.dump) process.stdout.write(dumpSlot(port, rx, rxHead));
      const from = rx.bufOfs(rxHead);
      const to = tx.bufOfs(txHead);
      port.m.u8.copyWithin(to, from, from + len);
      exchangeAddresses(port, from, to);
      tx.setLen(txHead, len);
      tx.setFlags(txHead, 0);
      txHead = tx.next(txHead);
      room--;
      answered++;
      run.counters.bytes += len;
    }
    rxHead = rx.next(rxHead);
  }
  rx.head = rxHead;
  rx.cur = rxHead;
  tx.head = txHead;
  tx.cur = txHead;
  return answered;
}

/** Ethernet destination and source, and IPv4's if it is IPv4: the checksums stay right. */
function exchangeAddresses(port: PktPort, from: number, to: number): void {
  const { u16 } = port.m;
  const s = from >>> 1;
  const d = to >>> 1;
  for (let k = 0; k < 3; k++) {
    u16[d + k] = u16[s + 3 + k]!;
    u16[d + 3 + k] = u16[s + k]!;
  }
  if (u16[s + 6] !== 0x0008) return; // ETHERTYPE_IP, big endian
  for (let k = 0; k < 2; k++) {
    u16[d + 13 + k] = u16[s + 15 + k]!;
    u16[d + 15 + k] = u16[s + 13 + k]!;
  }
}
