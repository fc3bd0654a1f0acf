/** Event descriptors and waiting for them. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { openSync, readdirSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';
import {
  closeFd,
  dup,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLRDHUP,
  Epoll,
  errno,
  eventfd,
  eventfdRead,
  eventfdSignal,
  isEventfd,
  POLLIN,
  POLLOUT,
  PollSet,
  setNonblocking,
  socketPair,
  SysError,
  type Watch,
  watch,
} from '../../../src/os/index.ts';

const openFds = (): number => readdirSync('/proc/self/fd').length;
const code = (name: string) => (e: unknown) => e instanceof SysError && e.code === name;

test('eventfd: counts signals, reads as 0 when there are none, and says when it is full (R15)', () => {
  const fd = eventfd();
  assert.equal(eventfdRead(fd), 0n);
  assert.equal(eventfdSignal(fd), 0);
  assert.equal(eventfdSignal(fd), 0);
  assert.equal(eventfdRead(fd), 2n);
  assert.equal(eventfdRead(fd), 0n);
  writeSync(fd, new Uint8Array(BigUint64Array.of(0xfffffffffffffffdn).buffer));
  assert.equal(eventfdSignal(fd), 0);
  assert.equal(eventfdSignal(fd), errno.EAGAIN);
  assert.equal(eventfdRead(fd), 0xfffffffffffffffen);
  closeFd(fd);
  assert.equal(eventfdSignal(fd), errno.EBADF);
  assert.throws(() => eventfdRead(fd), code('EBADF'));
});

test('R15: only real eventfds are taken for eventfds', () => {
  const [a, b] = socketPair();
  const epoll = new Epoll(1);
  const event = eventfd();
  const file = openSync('/proc/self/status', 'r');
  assert.equal(isEventfd(event), true);
  for (const fd of [a, b, epoll.fd, file, -1, 1 << 20]) assert.equal(isEventfd(fd), false);
  for (const fd of [a, b, event, file]) closeFd(fd);
  epoll.close();
});

test('dup: another descriptor of the same file; closing a negative one does nothing', () => {
  const before = openFds();
  const fd = eventfd();
  const other = dup(fd);
  assert.notEqual(other, fd);
  closeFd(fd);
  assert.equal(eventfdSignal(other), 0);
  assert.equal(eventfdRead(other), 1n);
  closeFd(other);
  closeFd(-1);
  assert.throws(() => dup(other), code('EBADF'));
  assert.throws(() => setNonblocking(other), code('EBADF'));
  assert.equal(openFds(), before);
});

test('epoll: edge-triggered eventfds wake once per signal without being read (R14)', () => {
  const before = openFds();
  const epoll = new Epoll(4);
  const fds = [eventfd(), eventfd()] as const;
  epoll.add(fds[0], EPOLLIN | EPOLLET, 0xdeadbeef);
  epoll.add(fds[1], EPOLLIN, 7);
  assert.equal(epoll.wait(0), 0);
  eventfdSignal(fds[0]);
  for (let i = 0; i < 2; i++) {
    assert.equal(epoll.wait(0), 1);
    assert.equal(epoll.data(0), 0xdeadbeef);
    assert.equal(epoll.events(0), EPOLLIN);
    assert.equal(epoll.wait(0), 0);
    eventfdSignal(fds[0]);
  }
  eventfdSignal(fds[1]);
  assert.equal(epoll.wait(0), 2);
  assert.deepEqual(
    [epoll.data(0), epoll.data(1)].sort((a, b) => a - b),
    [7, 0xdeadbeef],
  );
  assert.equal(epoll.wait(0), 1, 'level-triggered: again');
  epoll.remove(fds[1]);
  assert.equal(epoll.wait(0), 0);
  assert.throws(() => epoll.add(fds[0], EPOLLIN, 0), code('EEXIST'));
  assert.throws(() => epoll.remove(fds[1]), code('ENOENT'));
  fds.forEach(closeFd);
  epoll.close();
  assert.throws(() => epoll.wait(0), code('EBADF'));
  assert.equal(openFds(), before);
});

test('epoll: no more events than there is room for; the end of a peer is seen', () => {
  const epoll = new Epoll(2);
  const pairs = [socketPair(), socketPair(), socketPair()];
  pairs.forEach(([a], i) => epoll.add(a, EPOLLIN | EPOLLRDHUP, i));
  pairs.forEach(([, b]) => closeFd(b));
  assert.equal(epoll.wait(0), 2);
  assert.equal(epoll.events(0), (EPOLLIN | EPOLLRDHUP | EPOLLHUP) >>> 0);
  pairs.forEach(([a]) => closeFd(a));
  epoll.close();
});

test('poll: which are ready, for what; entries can be changed and left out', () => {
  const [a, b] = socketPair();
  const event = eventfd();
  const set = new PollSet([
    { fd: a, events: POLLIN | POLLOUT },
    { fd: event, events: POLLIN },
  ]);
  assert.equal(set.poll(0), 1);
  assert.deepEqual([set.revents(0), set.revents(1)], [POLLOUT, 0]);
  eventfdSignal(event);
  assert.equal(set.poll(0), 2);
  set.set(0, -1, POLLOUT);
  assert.equal(set.poll(0), 1);
  assert.deepEqual([set.revents(0), set.revents(1)], [0, POLLIN]);
  eventfdRead(event);
  assert.equal(set.poll(0), 0);
  assert.equal(new PollSet([]).poll(0), 0);
  for (const fd of [a, b, event]) closeFd(fd);
});

/** Resolves with what the watch reported first. */
function firstReady(
  fd: number,
  interest: { readable: boolean; writable: boolean },
): Promise<{ ready: unknown; w: Watch }> {
  return new Promise((resolve) => {
    const w = watch(fd, interest, (ready) => {
      w.close();
      resolve({ ready: { readable: ready.readable, writable: ready.writable }, w });
    });
  });
}

test('watch: calls back when ready, again as long as it is, and not after close', async () => {
  const fd = eventfd();
  eventfdSignal(fd);
  let calls = 0;
  await new Promise<void>((resolve) => {
    const w = watch(fd, { readable: true, writable: false }, (ready) => {
      assert.equal(ready.readable, true);
      assert.equal(ready.writable, false);
      if (++calls < 3) return;
      w.close();
      w.close();
      w.update({ readable: true, writable: true });
      setTimeout(resolve, 20);
    });
  });
  assert.equal(calls, 3);
  closeFd(fd);
});

test('watch: interest can be changed, and taken away', async () => {
  const [a, b] = socketPair();
  const seen: string[] = [];
  const w = watch(a, { readable: true, writable: false }, (ready) => {
    seen.push(`${ready.readable} ${ready.writable}`);
    w.update({ readable: false, writable: false });
  });
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.deepEqual(seen, []);
  w.update({ readable: true, writable: true });
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.deepEqual(seen, ['false true']);
  closeFd(b);
  w.update({ readable: true, writable: false });
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.deepEqual(seen, ['false true', 'true false']);
  w.close();
  closeFd(a);
});

test('watch: a peer’s end makes a socket readable and writable', async () => {
  const [a, b] = socketPair();
  closeFd(b);
  const { ready } = await firstReady(a, { readable: true, writable: true });
  assert.deepEqual(ready, { readable: true, writable: true });
  closeFd(a);
});

test('watch: promises that a callback resolves go on at once, with nothing else going on', async () => {
  const [a, b] = socketPair();
  const order: string[] = [];
  await new Promise<void>((resolve) => {
    let n = 0;
    const w = watch(a, { readable: false, writable: true }, () => {
      order.push(`call ${n}`);
      void Promise.resolve(n).then((i) => order.push(`then ${i}`));
      if (++n < 3) return;
      w.close();
      setTimeout(resolve, 1);
    });
  });
  assert.deepEqual(order, ['call 0', 'then 0', 'call 1', 'then 1', 'call 2', 'then 2']);
  closeFd(a);
  closeFd(b);
});

test('watch: what cannot be watched, and a second watch of one descriptor, are errors, not the end of the process', () => {
  const before = openFds();
  const file = openSync('/proc/self/exe', 'r');
  assert.throws(() => watch(file, { readable: true, writable: false }, () => {}), code('EPERM'));
  closeFd(file);
  assert.throws(() => watch(file, { readable: true, writable: false }, () => {}), code('EBADF'));
  const fd = eventfd();
  const w = watch(fd, { readable: true, writable: false }, () => {});
  assert.throws(() => watch(fd, { readable: true, writable: false }, () => {}), code('EEXIST'));
  w.close();
  watch(fd, { readable: true, writable: false }, () => {}).close();
  closeFd(fd);
  assert.equal(openFds(), before);
});

test('watch: an exception in a callback is an uncaught exception of the thread', async () => {
  const script = `
    import { eventfd, eventfdSignal, watch } from ${JSON.stringify(new URL('../../../src/os/index.js', import.meta.url).href)};
    const fd = eventfd();
    eventfdSignal(fd);
    let n = 0;
    process.on('uncaughtException', (e) => {
      console.log(e.message);
      if (n >= 2) process.exit(0);
    });
    watch(fd, { readable: true, writable: false }, () => { throw new Error('thrown ' + ++n); });
  `;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script]);
  assert.match(stdout, /^thrown 1\nthrown 2\n/);
});

test('EPOLLOUT and the other numbers are Linux’s', () => {
  assert.deepEqual([EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLET], [1, 4, 0x2000, 0x80000000]);
});
