/**
 * Ping-pong with random pauses, so that each end goes to sleep at every possible moment of the other's work. Arguments:
 * run directory, port, role (ping or pong), round trips, mac of the peer. Says "ready MAC"; ping prints JSON at the end.
 */
import { openPort, POLLIN } from '../../../src/api/index.ts';
import { macBytes } from './packets.ts';

const [runDir, name, role, count, peer = 'ff:ff:ff:ff:ff:ff'] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string?,
];
const port = await openPort(name, { runDir, txSlots: 16, rxSlots: 16 });
const [tx, rx] = [port.txRings[0]!, port.rxRings[0]!];
const head = [...macBytes(peer), ...macBytes(port.mac), 0x88, 0xb5];
/** A hang: much longer than R12's 100 ms, and than a busy machine makes anybody wait. */
const HANG_MS = 60_000;
const idle = new Int32Array(new SharedArrayBuffer(4));

function pause(): void {
  const kind = Math.random();
  if (kind < 0.5) return;
  if (kind < 0.98) for (const end = performance.now() + Math.random() * 0.06; performance.now() < end; );
  else Atomics.wait(idle, 0, 0, Math.random());
}

function send(n: number): void {
  const at = tx.bufOfs(tx.head);
  for (let i = 0; i < head.length; i++) port.m.u8[at + i] = head[i]!;
  port.m.u32[(at + 16) >>> 2] = n;
  tx.setLen(tx.head, 60);
  tx.setFlags(tx.head, 0);
  tx.head = tx.cur = tx.next(tx.head);
  port.txsync();
}

function receive(n: number): void {
  if (port.poll(POLLIN, HANG_MS) === 0) throw new Error(`${role}: packet ${n} has not come for ${HANG_MS / 1000} s`);
  const got = port.m.u32[(rx.bufOfs(rx.head) + 16) >>> 2]!;
  if (got !== n) throw new Error(`${role}: packet ${got} instead of ${n}`);
  rx.head = rx.cur = rx.next(rx.head);
}

process.stdout.write(`ready ${port.mac}\n`);
const times = new Float64Array(Number(count));
for (let n = 1; n <= Number(count); n++) {
  const start = performance.now();
  if (role === 'ping') send(n);
  receive(n);
  if (role === 'pong') {
    pause();
    send(n);
    continue;
  }
  times[n - 1] = performance.now() - start;
  pause();
}
times.sort();
const at = (part: number): number => times[Math.floor((times.length - 1) * part)]!;
const slow = times.filter((ms) => ms > 90).length;
process.stdout.write(`${JSON.stringify({ p50: at(0.5), p99: at(0.99), longest: at(1), slow })}\n`);
await port.close();
process.exit(0);
