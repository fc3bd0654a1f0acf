/** A port as applications use it (docs/api.md), on a fake host whose rings the test owns: rings and slots, sync, poll, wait, close. */
import assert from 'node:assert/strict';
import { setMaxListeners } from 'node:events';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import {
  NR_DO_RX_POLL,
  NR_NO_TX_POLL,
  NR_TIMESTAMP,
  NS_BUF_CHANGED,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
} from '../../../src/abi/index.ts';
import { type NetmapPort, POLLIN, POLLOUT } from '../../../src/api/port.ts';
import { closeFd } from '../../../src/os/index.ts';
import type { FakeConfig, FakeHost } from '../guest/fake-host.ts';
import { openFake } from './fake.ts';

async function withFake(
  config: FakeConfig,
  body: (x: { host: FakeHost; port: NetmapPort; socket: number }) => Promise<void> | void,
): Promise<void> {
  const x = await openFake(config);
  try {
    await body(x);
  } finally {
    await x.port.close();
    closeFd(x.socket);
  }
}

/** Fills a slot and moves head and cur past it. */
function send(port: NetmapPort, text: string): void {
  const ring = port.txRings[0]!;
  const i = ring.head;
  port.m.u8.set(Buffer.from(text), ring.bufOfs(i));
  ring.setLen(i, text.length);
  ring.head = ring.cur = ring.next(i);
}

/** Takes one packet. */
function take(port: NetmapPort): string {
  const ring = port.rxRings[0]!;
  const i = ring.head;
  const at = ring.bufOfs(i);
  const text = Buffer.from(port.m.u8.slice(at, at + ring.len(i))).toString();
  ring.head = ring.cur = ring.next(i);
  return text;
}

test('packets go out at txsync and come in at rxsync, around the ring several times', () =>
  withFake({ slots: 8 }, ({ host, port }) => {
    const [tx] = port.txRings;
    const [rx] = port.rxRings;
    assert.equal(tx!.space(), 7);
    assert.equal(rx!.space(), 0);
    for (let n = 0; n < 50; n++) {
      send(port, `packet ${n}`);
      send(port, `other ${n}`);
      port.txsync();
      host.turn();
      port.rxsync();
      assert.equal(rx!.space(), 2);
      assert.equal(take(port), `packet ${n}`);
      assert.equal(take(port), `other ${n}`);
      port.txsync();
      port.rxsync();
      host.turn();
    }
    port.txsync();
    assert.equal(tx!.space(), 7);
  }));

test('the ring keeps netmap’s vocabulary: slots, buffers, flags', () =>
  withFake({ slots: 8, bufSize: 512 }, ({ port }) => {
    const ring = port.txRings[0]!;
    assert.deepEqual([ring.numSlots, ring.bufSize, ring.ringId, ring.dir, port.bufSize], [8, 512, 0, 1, 512]);
    assert.deepEqual([ring.next(0), ring.next(7)], [1, 0]);
    const [a, b] = [ring.bufIdx(0), ring.bufIdx(1)];
    assert.equal(ring.bufOfs(0), port.bufOfs(a));
    ring.setBufIdx(0, b);
    assert.equal(ring.flags(0), NS_BUF_CHANGED);
    assert.equal(ring.bufOfs(0), port.bufOfs(b));
    ring.setFlags(0, 0x20);
    ring.setLen(0, 511);
    assert.deepEqual([ring.flags(0), ring.len(0)], [0x20, 511]);
    ring.setBufIdx(0, a);
    assert.deepEqual([ring.slotOfs(1) - ring.slotOfs(0), netmap_slot.get.len(port.m, ring.slotOfs(0))], [16, 511]);
    assert.throws(() => ring.len(8), /tx ring 0 has no slot 8/);
    assert.throws(() => ring.slotOfs(8), /tx ring 0 has no slot 8/);
    assert.throws(() => ring.len(-1), /no slot -1/);
    ring.setBufIdx(0, 99_999);
    assert.throws(() => ring.bufOfs(0), /slot 0 of tx ring 0 has buffer 99999/);
    assert.throws(() => port.bufOfs(99_999), /port fake0:x has no buffer 99999/);
  }));

test('a kick only while kern_need_kick is set', () =>
  withFake({}, ({ host, port }) => {
    for (const ring of host.rings) nm_csb_ktoa.set.kern_need_kick(host.m, host.ktoa(ring), 0);
    send(port, 'quiet');
    port.txsync();
    port.rxsync();
    assert.equal(host.kicks, 0);
    nm_csb_ktoa.set.kern_need_kick(host.m, host.ktoa(host.rings[0]!), 1);
    send(port, 'kick');
    port.txsync();
    assert.equal(host.kicks, 1);
  }));

test('poll: ready at once, time-out, and tx handed over whatever is waited for', () =>
  withFake({ slots: 8 }, ({ host, port }) => {
    assert.equal(port.poll(POLLOUT, -1), POLLOUT);
    assert.equal(port.poll(POLLIN, 0), 0);
    assert.equal(port.poll(POLLIN, 5), 0);
    send(port, 'one');
    assert.equal(port.poll(POLLIN, 1000), POLLIN, 'the kick made the host loop it back');
    assert.equal(take(port), 'one');
    host.turnAtKick = false;
    port.txsync();
    for (let i = 0; i < 7; i++) send(port, 'fill');
    assert.equal(port.poll(POLLOUT, 5), 0, 'no room');
    assert.equal(port.poll(POLLIN | POLLOUT, 0), 0);
    host.turn();
    assert.equal(port.poll(POLLIN | POLLOUT, 0), POLLIN | POLLOUT);
  }));

test('R13: interrupts are on only while something waits', () =>
  withFake({}, async ({ host, port }) => {
    const rx = host.rxRings[0]!;
    const needKick = (): number => nm_csb_atok.get.appl_need_kick(host.m, host.atok(rx));
    assert.equal(needKick(), 0);
    const first = port.wait(POLLIN, { timeoutMs: 5 });
    const second = port.wait(POLLIN, { timeoutMs: 1000 });
    assert.equal(needKick(), 1);
    assert.equal(await first, 0);
    assert.equal(needKick(), 1, 'the second still waits');
    host.deliver(rx, [Buffer.from('x')]);
    host.publish(rx);
    assert.equal(await second, POLLIN);
    assert.equal(needKick(), 0);
  }));

test('wait: woken by the interrupt of either direction, by a time-out, by a signal', () =>
  withFake({ slots: 8 }, async ({ host, port }) => {
    const rx = host.rxRings[0]!;
    for (let n = 0; n < 3; n++) {
      setImmediate(() => {
        host.deliver(rx, [Buffer.from(`late ${n}`)]);
        host.publish(rx);
      });
      assert.equal(await port.wait(POLLIN), POLLIN);
      assert.equal(take(port), `late ${n}`);
    }
    host.turnAtKick = false;
    for (let i = 0; i < 7; i++) send(port, 'fill');
    setImmediate(() => host.turn());
    assert.equal(await port.wait(POLLOUT), POLLOUT);
    port.rxRings[0]!.head = port.rxRings[0]!.cur = port.rxRings[0]!.tail;
    port.rxsync();
    host.turn();
    port.rxRings[0]!.head = port.rxRings[0]!.cur = port.rxRings[0]!.tail;
    assert.equal(await port.wait(POLLIN, { timeoutMs: 5 }), 0);
    await assert.rejects(port.wait(POLLIN, { signal: AbortSignal.timeout(5) }), { name: 'TimeoutError' });
    await assert.rejects(port.wait(POLLIN, { signal: AbortSignal.abort() }), { name: 'AbortError' });
    // More than timers take is not less.
    const long = port.wait(POLLIN, { timeoutMs: 2 ** 31, signal: AbortSignal.timeout(50) });
    await assert.rejects(long, { name: 'TimeoutError' });
  }));

test('wait: nothing is left of those that ended without a packet', () =>
  withFake({ slots: 8 }, async ({ port }) => {
    setFlagsFromString('--expose-gc');
    const gc = runInNewContext('gc') as () => void;
    const inVain = async (rounds: number): Promise<void> => {
      for (let n = 0; n < rounds; n++) {
        const end = new AbortController();
        setMaxListeners(0, end.signal);
        const waits = Array.from({ length: 1000 }, () => port.wait(POLLIN, { signal: end.signal }));
        end.abort();
        assert.equal((await Promise.allSettled(waits)).filter(({ status }) => status === 'rejected').length, 1000);
      }
      gc();
    };
    await inVain(5);
    const before = process.memoryUsage().heapUsed;
    await inVain(50);
    const grown = process.memoryUsage().heapUsed - before;
    assert.ok(grown < 4e6, `${grown} bytes more after 50,000 waits`);
  }));

test('a wait for packets and a wait for room, pending together, and a poll in between', () =>
  withFake({ slots: 8 }, async ({ host, port }) => {
    host.turnAtKick = false;
    for (let i = 0; i < 7; i++) send(port, `p${i}`);
    const room = port.wait(POLLOUT);
    const packets = port.wait(POLLIN);
    host.turn();
    assert.equal(port.poll(POLLIN, 0), POLLIN);
    assert.equal(await room, POLLOUT);
    assert.equal(await packets, POLLIN);
  }));

test('the end of the daemon ends a blocking poll and pending waits with an error that says so', async () => {
  const { host, port, socket } = await openFake();
  const pending = port.wait(POLLIN);
  closeFd(socket);
  assert.throws(() => port.poll(POLLIN, -1), { code: 'ENODEV', message: /the daemon of port fake0:x is gone/ });
  await assert.rejects(pending, /the daemon of port fake0:x is gone/);
  assert.throws(() => port.txsync(), /gone/);
  host.ptnet.end('end of file');
  await port.close();
});

test('the reason of a lost connection reaches a wait', async () => {
  const { host, port, socket } = await openFake();
  const pending = port.wait(POLLIN);
  host.ptnet.end('end of file');
  await assert.rejects(pending, /the daemon of port fake0:x is gone \(end of file\)/);
  await port.close();
  closeFd(socket);
});

test('close: pending waits end, later calls say so, and reading a ring is harmless', async () => {
  const { port, socket } = await openFake();
  const pending = assert.rejects(port.wait(POLLIN), /port fake0:x \(the port was closed\)/);
  await Promise.all([port.close(), port.close()]);
  await pending;
  assert.throws(() => port.rxsync(), /port was closed/);
  assert.throws(() => port.txRings[0]!.slotOfs(0), /tx ring 0 has no slots: its port was closed/);
  assert.equal(port.rxRings[0]!.len(0), undefined);
  closeFd(socket);
});

test('slot accesses and syncs allocate nothing', () =>
  withFake({ slots: 1024 }, ({ host, port }) => {
    const tx = port.txRings[0]!;
    const rx = port.rxRings[0]!;
    for (const ring of host.rings) nm_csb_ktoa.set.kern_need_kick(host.m, host.ktoa(ring), 0);
    let sum = 0;
    const rounds = (n: number): void => {
      for (let round = 0; round < n; round++) {
        let i = tx.head;
        for (let k = 0; k < 1000; k++, i = tx.next(i)) {
          sum += tx.bufOfs(i) + tx.bufIdx(i);
          tx.setLen(i, 60);
          tx.setFlags(i, 0);
          sum += rx.len(i) + rx.flags(i) + rx.space() + rx.bufOfs(i);
        }
        port.txsync();
        port.rxsync();
        sum += port.poll(POLLOUT, 0);
      }
    };
    rounds(200);
    const before = process.memoryUsage().heapUsed;
    rounds(2000);
    const grown = process.memoryUsage().heapUsed - before;
    assert.ok(sum > 0);
    // One number on the heap for each packet would be 24 MB or more. What is allowed is the runtime's own.
    assert.ok(grown < 2_000_000, `${grown} bytes for 2 million packets`);
  }));

test('NR_NO_TX_POLL, NR_DO_RX_POLL: what poll syncs beyond what it waits for', () =>
  withFake({ slots: 8 }, ({ host, port }) => {
    send(port, 'one');
    port.pollFlags = NR_NO_TX_POLL;
    port.poll(POLLIN, 0);
    assert.equal(nm_csb_atok.get.head(host.m, host.atok(host.rings[0]!)), 0, 'not handed over');
    port.poll(POLLOUT, 0);
    assert.equal(nm_csb_atok.get.head(host.m, host.atok(host.rings[0]!)), 1);
    host.turn();
    assert.equal(port.poll(POLLOUT, 0), POLLOUT);
    assert.equal(port.rxRings[0]!.space(), 0, 'rx is not looked at');
    port.pollFlags = NR_DO_RX_POLL;
    assert.equal(port.poll(POLLOUT, 0), POLLOUT);
    assert.equal(port.rxRings[0]!.space(), 1);
  }));

test('NR_TIMESTAMP: an rx ring that asks for it says when it was synced', () =>
  withFake({ slots: 8 }, ({ port }) => {
    const ring = port.rxRings[0]!;
    port.rxsync();
    assert.equal(ring.ts, 0);
    ring.ringFlags |= NR_TIMESTAMP;
    const before = Date.now() * 1000;
    port.rxsync();
    assert.ok(ring.ts >= before - 1e6 && ring.ts <= Date.now() * 1000 + 1e6, `${ring.ts}`);
  }));
