/** nmreplay's transmission: what is due goes into the tx ring, the rest waits. Mirrors cons(). */
import { setImmediate, setTimeout } from 'node:timers/promises';
import { NS_BUF_CHANGED, NS_MOREFRAG, POLLOUT } from '../../api/index.ts';
import type { PktPort, PktRing } from '../pkt-gen/run.ts';
import type { Schedule, Trace } from './schedule.ts';

/** Longest time without a look at signals. */
const BREATH_MS = 10;
/** Sleeping takes up to this much longer than asked for; the rest is waited for awake. */
const IMPRECISION_MS = 1.5;

export class Replayed {
  packets = 0;
  bytes = 0;
  /** Largest time by which a packet was late, ms. */
  late = 0;
}

/** Copies a packet into slots from head on; bytes that were not captured are zeros. Returns the new head. */
function put(port: PktPort, ring: PktRing, head: number, trace: Trace, i: number): number {
  const { u8 } = port.m;
  const bytes = trace.bytes[i]!;
  const captured = trace.captured[i]!;
  const from = trace.ofs[i]!;
  let at = head;
  for (let done = 0; ; ) {
    const n = Math.min(bytes - done, port.bufSize);
    const to = ring.bufOfs(at);
    const has = Math.max(0, Math.min(n, captured - done));
    if (has <= 256) for (let k = 0; k < has; k++) u8[to + k] = trace.data[from + done + k]!;
    else u8.set(trace.data.subarray(from + done, from + done + has), to);
    if (has < n) u8.fill(0, to + has, to + n);
    done += n;
    ring.setLen(at, n);
    ring.setFlags(at, NS_BUF_CHANGED | (done < bytes ? NS_MOREFRAG : 0));
    at = ring.next(at);
    if (done >= bytes) return at;
  }
}

/**
 * Sends a schedule until its end or until cancelled.
 * @param burst most packets between two syncs
 * @param each called every 10 ms or so
 */
export async function replay(
  port: PktPort,
  trace: Trace,
  schedule: Schedule,
  burst: number,
  cancel: { readonly cancelled: boolean },
  each: (done: Replayed) => void,
): Promise<Replayed> {
  const done = new Replayed();
  const [first, ...others] = port.txRings;
  const ring = first!;
  for (const other of others) other.cur = other.tail; // their room is not waited for
  const start = performance.now();
  let breathAt = start;
  let more = schedule.next();
  while (more && !cancel.cancelled) {
    let now = performance.now();
    if (now >= breathAt) {
      await setImmediate();
      each(done);
      breathAt = now + BREATH_MS;
    }
    const wait = start + schedule.time / 1e6 - now;
    if (wait > 0) {
      if (wait > IMPRECISION_MS) await setTimeout(Math.min(wait - 1, 100));
      continue;
    }
    let head = ring.head;
    let space = ring.space();
    let full = false;
    for (let sent = 0; sent < burst && more && start + schedule.time / 1e6 <= now; sent++) {
      const bytes = trace.bytes[schedule.packet]!;
      const slots = Math.max(1, Math.ceil(bytes / port.bufSize));
      if (slots > space) {
        if (slots >= ring.numSlots) throw new Error(`a packet of ${bytes} bytes needs more slots than the ring has`);
        full = true;
        break;
      }
      head = put(port, ring, head, trace, schedule.packet);
      space -= slots;
      done.packets += 1;
      done.bytes += bytes;
      const late = now - start - schedule.time / 1e6;
      if (late > done.late) done.late = late;
      more = schedule.next();
      now = performance.now();
    }
    ring.head = head;
    ring.cur = full ? ring.tail : head;
    if (full) port.poll(POLLOUT, 100);
    else port.txsync();
  }
  // Until the host has taken all, or 2 s after the end was asked for.
  const giveUp = performance.now() + 2000;
  while (ring.next(ring.tail) !== ring.head && performance.now() < giveUp) {
    port.txsync();
    await setImmediate();
  }
  return done;
}
