/** The life of a server's connection: stalls, ends at any moment, descriptors on every way out, several clients. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { SysError } from '../../../src/os/index.ts';
import {
  closeFd,
  eventfd,
  frame,
  kinds,
  openFds,
  type Raw,
  serveClient,
  serveRaw,
  turn,
  versionFrame,
} from './support.ts';

const VERSION = versionFrame('{"capabilities":{"max_msg_fds":16}}');
const SET_3_IRQS = frame(9, 8, '14000000 24000000 02000000 00000000 03000000');
const READ_1M = frame(9, 9, '0000000000000000 03000000 00001000');

async function negotiated(r: Raw): Promise<void> {
  assert.equal((await r.wire.call(VERSION))?.error, 0);
}

/** A promise to hold a handler with, and how to let it go on. */
function gate(): { wait: Promise<void>; open: () => void } {
  const resolvers: (() => void)[] = [];
  const wait = new Promise<void>((resolve) => resolvers.push(resolve));
  return { wait, open: () => resolvers[0]?.() };
}

for (const kind of kinds) {
  test(`R17 ${kind}: a client that ends in mid-message, at any byte, is gone and its descriptors are closed`, async () => {
    const before = openFds();
    for (let cut = 0; cut <= SET_3_IRQS.length; cut++) {
      const r = serveRaw(kind);
      await negotiated(r);
      const fds = [eventfd(), eventfd(), eventfd()];
      await r.wire.send(SET_3_IRQS.subarray(0, cut), fds);
      fds.forEach(closeFd);
      r.wire.close();
      const reason = await r.server.closed;
      if (cut === 0 || cut === SET_3_IRQS.length) assert.match(reason, /^the peer closed the connection$|EPIPE/);
      else assert.match(reason, new RegExp(`after ${cut} bytes of a (header|message of 36 bytes)$`));
      const calls = cut === SET_3_IRQS.length ? ['setIrqs 2 0x24 0 3 3', 'disconnected'] : ['disconnected'];
      // A client that is gone may be noticed before its last request is read.
      if (r.device.calls.length > 1 || cut < SET_3_IRQS.length) assert.deepEqual(r.device.calls, calls);
      await r[Symbol.asyncDispose]();
    }
    assert.equal(openFds(), before);
  });

  test(`R17 ${kind}: a client stalled in mid-message is disconnected, its descriptors closed`, async () => {
    const before = openFds();
    for (const cut of [1, 15, 16, 35]) {
      const r = serveRaw(kind, { stallMs: 30 });
      await negotiated(r);
      await delay(60); // being idle between messages is no stall
      const fd = eventfd();
      await r.wire.send(SET_3_IRQS.subarray(0, cut), [fd, fd, fd]);
      closeFd(fd);
      assert.equal(await r.server.closed, 'the client left a message unfinished for 30 ms');
      assert.equal(await r.wire.receive(), undefined);
      await r[Symbol.asyncDispose]();
    }
    assert.equal(openFds(), before);
  });

  test(`R17 ${kind}: dripping bytes do not put the stall off`, async () => {
    await using r = serveRaw(kind, { stallMs: 50 });
    await negotiated(r);
    try {
      for (let i = 0; i < 35; i++) {
        await r.wire.send(SET_3_IRQS.subarray(i, i + 1));
        await delay(10);
      }
    } catch (e) {
      assert.ok(e instanceof SysError && e.code === 'EPIPE');
    }
    assert.match(await r.server.closed, /unfinished/);
  });

  test(`R17 ${kind}: a client that does not read its replies is disconnected, and no more is served meanwhile`, async () => {
    await using r = serveRaw(kind, { stallMs: 100 });
    await negotiated(r);
    for (let i = 0; i < 20; i++) await r.wire.send(READ_1M);
    assert.match(await r.server.closed, /left a reply unread for 100 ms/);
    assert.deepEqual(r.device.calls, ['regionRead 3 0 1048576', 'disconnected']);
  });

  test(`${kind}: more descriptors in one message than allowed are cut by the kernel: disconnected (MSG_CTRUNC, R17)`, async () => {
    const before = openFds();
    const r = serveRaw(kind);
    await negotiated(r);
    const fds = Array.from({ length: 17 }, () => eventfd());
    await r.wire.send(SET_3_IRQS, fds);
    fds.forEach(closeFd);
    assert.match(await r.server.closed, /MSG_CTRUNC/);
    assert.deepEqual(r.device.calls, ['disconnected']);
    await r[Symbol.asyncDispose]();
    assert.equal(openFds(), before);
  });

  test(`${kind}: a client that goes while a handler runs: the handler ends first, then the device is told, once`, async () => {
    const before = openFds();
    for (const how of ['client', 'server'] as const) {
      const r = serveRaw(kind);
      await negotiated(r);
      const { wait, open } = gate();
      r.device.hook = (call) => (call === 'reset' ? wait : undefined);
      await r.wire.send(frame(9, 13));
      await r.wire.send(SET_3_IRQS.subarray(0, 20));
      while (r.device.calls.length === 0) await turn();
      if (how === 'client') r.wire.close();
      else r.server.close('because');
      r.server.close('a second time');
      for (let i = 0; i < 5; i++) await turn();
      assert.deepEqual(r.device.calls, ['reset']);
      open();
      if (how === 'client') assert.match(await r.server.closed, /a second time/);
      else assert.equal(await r.server.closed, 'because');
      assert.deepEqual(r.device.calls, ['reset', 'disconnected']);
      await r[Symbol.asyncDispose]();
    }
    assert.equal(openFds(), before);
  });

  test(`${kind}: a slow handler of one client does not hold up another`, async () => {
    await using slow = serveRaw(kind);
    await using quick = serveRaw(kind);
    await negotiated(slow);
    await negotiated(quick);
    const { wait, open } = gate();
    slow.device.hook = (call) => (call === 'reset' ? wait : undefined);
    await slow.wire.send(frame(1, 13));
    for (let i = 0; i < 40; i++) assert.equal((await quick.wire.call(frame(i, 13)))?.id, i);
    open();
    assert.equal((await slow.wire.receive())?.id, 1);
  });
}

test('a handler that closes its own connection ends before the device is told', async () => {
  for (const asynchronous of [false, true]) {
    await using r = serveRaw();
    await negotiated(r);
    r.device.hook = (call) => {
      if (call !== 'reset') return undefined;
      r.server.close('enough');
      r.device.calls.push('still in reset');
      return asynchronous ? turn().then(() => void r.device.calls.push('later in reset')) : undefined;
    };
    await r.wire.send(frame(1, 13));
    assert.equal(await r.server.closed, 'enough');
    const later = asynchronous ? ['later in reset'] : [];
    assert.deepEqual(r.device.calls, ['reset', 'still in reset', ...later, 'disconnected']);
  }
});

test('a disconnect during a reply does not disturb the process or the device', async () => {
  await using r = serveRaw('socket');
  await negotiated(r);
  r.device.hook = (call) => {
    if (call === 'reset') r.wire.close();
  };
  await r.wire.send(frame(1, 13));
  assert.match(await r.server.closed, /EPIPE/);
  assert.deepEqual(r.device.calls, ['reset', 'disconnected']);
});

test('a device that fails while disconnecting is logged, and the connection is over all the same', async () => {
  await using r = serveRaw();
  await negotiated(r);
  r.device.hook = () => {
    throw new Error('cannot');
  };
  r.wire.close();
  await r.server.closed;
  assert.match(r.log.at(-1)!, /failed while disconnecting: Error: cannot/);
});

test('a flooding client leaves others their turns', async () => {
  await using flooder = serveRaw('socket');
  await using other = serveRaw('socket');
  await negotiated(flooder);
  await negotiated(other);
  const posted = frame(1, 13, '', { flags: 0x10 });
  const burst = new Uint8Array(posted.length * 1000);
  for (let i = 0; i < 1000; i++) burst.set(posted, i * posted.length);
  await flooder.wire.send(burst);
  await other.wire.send(frame(2, 13));
  while (other.device.calls.length === 0) await turn();
  assert.ok(flooder.device.calls.length < 1000, `${flooder.device.calls.length} of the flooder's were served first`);
});

test('after one client another may be served by the same device', async () => {
  const first = await serveClient('socket');
  await first.client.reset();
  first.client.close();
  await first.server.closed;
  await using second = await serveClient('socket', {}, first.device);
  await second.client.reset();
  assert.deepEqual(second.device.calls, ['reset', 'disconnected', 'reset']);
});
