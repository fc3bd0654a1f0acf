/** UNIX sockets with descriptors. */
import assert from 'node:assert/strict';
import { fstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import {
  acceptUnix,
  closeFd,
  connectUnix,
  eventfd,
  listenUnix,
  MessageSocket,
  peerCredentials,
  SCM_MAX_FD,
  socketPair,
  SysError,
} from '../../../src/os/index.ts';

const dir = mkdtempSync(join(tmpdir(), 'ptnet-os-'));
after(() => rmSync(dir, { recursive: true }));

const openFds = (): number => readdirSync('/proc/self/fd').length;
const code = (name: string) => (e: unknown) => e instanceof SysError && e.code === name;

/** Flags of an open descriptor, as the kernel prints them. */
const flagsOf = (fd: number): number =>
  Number.parseInt(/flags:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8);
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;

test('listen, connect, accept: non-blocking, close-on-exec, file mode 0600 (R21)', () => {
  const before = openFds();
  const path = join(dir, 'a');
  const server = listenUnix(path);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal(acceptUnix(server), -1);
  const client = connectUnix(path);
  const accepted = acceptUnix(server);
  assert.ok(accepted >= 0);
  assert.equal(acceptUnix(server), -1);
  for (const fd of [server, client, accepted]) {
    assert.equal(flagsOf(fd) & (O_NONBLOCK | O_CLOEXEC), O_NONBLOCK | O_CLOEXEC);
    closeFd(fd);
  }
  assert.equal(openFds(), before);
});

test('another file mode is applied', () => {
  const path = join(dir, 'mode');
  closeFd(listenUnix(path, 0o660));
  assert.equal(statSync(path).mode & 0o777, 0o660);
});

test('errors of listen and connect say what and why, and leave nothing open', () => {
  const before = openFds();
  const path = join(dir, 'b');
  assert.throws(() => connectUnix(path), { name: 'SysError', message: `connect("${path}"): ENOENT` });
  closeFd(listenUnix(path));
  assert.throws(() => connectUnix(path), code('ECONNREFUSED'));
  assert.throws(() => listenUnix(path), code('EADDRINUSE'));
  assert.throws(() => listenUnix(join(dir, 'none', 'b')), code('ENOENT'));
  assert.throws(() => connectUnix(''), RangeError);
  assert.throws(() => connectUnix(`/${'x'.repeat(107)}`), RangeError);
  assert.equal(openFds(), before);
});

test('a path of 107 bytes works, counted in UTF-8', () => {
  const name = `${'x'.repeat(107 - dir.length - 1 - 2)}é`;
  const path = join(dir, name);
  assert.equal(Buffer.byteLength(path), 107);
  const server = listenUnix(path);
  closeFd(connectUnix(path));
  closeFd(server);
  assert.throws(() => listenUnix(`${path}y`), RangeError);
});

test('a full queue of connections is EAGAIN, not a wait', () => {
  const path = join(dir, 'full');
  const server = listenUnix(path, 0o600, 0);
  const clients: number[] = [];
  assert.throws(() => {
    for (let i = 0; i < 10; i++) clients.push(connectUnix(path));
  }, code('EAGAIN'));
  [server, ...clients].forEach(closeFd);
});

test('peer credentials are this process’s own, and EBADF is reported', () => {
  const [a, b] = socketPair();
  assert.deepEqual(peerCredentials(a), { pid: process.pid, uid: process.getuid!(), gid: process.getgid!() });
  closeFd(a);
  closeFd(b);
  assert.throws(() => peerCredentials(-1), code('EBADF'));
});

/** Two sockets; everything is closed and counted afterwards. */
function withPair(body: (a: MessageSocket, b: MessageSocket) => void, maxFds = 16): void {
  const before = openFds();
  const [a, b] = socketPair();
  try {
    body(new MessageSocket(a, maxFds), new MessageSocket(b, maxFds));
  } finally {
    closeFd(a);
    closeFd(b);
  }
  assert.equal(openFds(), before);
}

const nothing = { bytes: 0, ended: false, again: true, fds: [], truncated: false };

test('bytes arrive in the view they were asked into, and nowhere else', () => {
  withPair((a, b) => {
    // Views of 64 bytes and less have their memory inside the JavaScript heap until somebody asks for its address.
    for (const size of [1, 8, 64, 65, 4096]) {
      const out = new Uint8Array(size + 10).map((_, i) => i);
      assert.equal(a.send(out.subarray(3, 3 + size)), size);
      const into = new Uint8Array(size + 4);
      assert.deepEqual(b.receive(into.subarray(2, size + 3)), { ...nothing, again: false, bytes: size });
      assert.deepEqual(into, new Uint8Array([0, 0, ...out.subarray(3, 3 + size), 0, 0]));
    }
    assert.deepEqual(b.receive(new Uint8Array(1)), nothing);
  });
});

test('a full socket takes a part, then nothing; what was taken arrives whole', () => {
  withPair((a, b) => {
    const out = new Uint8Array(1 << 20).map((_, i) => i % 251);
    let sent = 0;
    for (let n = 1; n > 0; sent += n) n = a.send(out.subarray(sent));
    assert.ok(sent > 0 && sent < out.length);
    const into = new Uint8Array(sent);
    for (let got = 0; got < sent; ) got += b.receive(into.subarray(got)).bytes;
    assert.deepEqual(into, out.subarray(0, sent));
    assert.equal(a.send(Uint8Array.of(1)), 1);
  });
});

test('the end: what was sent can be read first; sending is EPIPE, without a signal', () => {
  withPair((a, b) => {
    a.send(Uint8Array.of(7));
    closeFd(a.fd);
    const into = new Uint8Array(4);
    assert.deepEqual(b.receive(into), { ...nothing, again: false, bytes: 1 });
    assert.deepEqual(b.receive(into), { ...nothing, again: false, ended: true });
    assert.throws(() => b.send(into), code('EPIPE'));
  });
});

test('the end of a peer that left something unread (ECONNRESET) is an end too', () => {
  withPair((a, b) => {
    b.send(Uint8Array.of(1));
    closeFd(a.fd);
    assert.equal(b.receive(new Uint8Array(4)).ended, true);
  });
});

test('descriptors arrive as new ones of the same file, close-on-exec, with the first byte of their message', () => {
  withPair((a, b) => {
    const fds = [eventfd(), eventfd(), eventfd()];
    a.send(Uint8Array.of(1, 2));
    a.send(Uint8Array.of(3, 4), fds);
    a.send(Uint8Array.of(5, 6));
    const one = new Uint8Array(1);
    assert.deepEqual(b.receive(one).fds, []);
    const got = b.receive(new Uint8Array(10));
    assert.equal(got.bytes, 3, 'reading stops after a message with descriptors');
    assert.equal(got.truncated, false);
    assert.equal(got.fds.length, 3);
    assert.equal(b.receive(new Uint8Array(10)).bytes, 2);
    got.fds.forEach((fd, i) => {
      assert.ok(!fds.includes(fd));
      assert.equal(fstatSync(fd).ino, fstatSync(fds[i]!).ino);
      assert.ok((flagsOf(fd) & O_CLOEXEC) !== 0);
    });
    [...fds, ...got.fds].forEach(closeFd);
  });
});

test('R17: descriptors up to the limit are accepted; one more is reported as truncated and closed by the kernel', () => {
  for (const limit of [1, 2, 3, 16, SCM_MAX_FD]) {
    withPair((a, b) => {
      const fd = eventfd();
      for (const n of [limit, limit + 1]) {
        if (n > SCM_MAX_FD) continue;
        a.send(
          Uint8Array.of(1),
          Array.from({ length: n }, () => fd),
        );
        const got = b.receive(new Uint8Array(1));
        assert.equal(got.fds.length, limit);
        assert.equal(got.truncated, n > limit);
        got.fds.forEach(closeFd);
      }
      closeFd(fd);
    }, limit);
  }
});

test('descriptors that cannot be sent: refused before or by the kernel, nothing is sent', () => {
  withPair((a, b) => {
    assert.throws(
      () =>
        a.send(
          Uint8Array.of(1),
          Array.from({ length: SCM_MAX_FD + 1 }, () => 0),
        ),
      RangeError,
    );
    assert.throws(() => a.send(Uint8Array.of(1), [-1]), code('EBADF'));
    assert.deepEqual(b.receive(new Uint8Array(1)), nothing);
    assert.equal(a.send(Uint8Array.of(1)), 1);
    assert.deepEqual(b.receive(new Uint8Array(2)).fds, []);
  });
});

test('unread descriptors go with the socket', () => {
  withPair((a) => {
    const fd = eventfd();
    a.send(Uint8Array.of(1), [fd]);
    closeFd(fd);
  });
});

test('a descriptor that is no socket is an error', () => {
  const fd = eventfd();
  const socket = new MessageSocket(fd);
  assert.throws(() => socket.receive(new Uint8Array(1)), code('ENOTSOCK'));
  assert.throws(() => socket.send(new Uint8Array(1)), code('ENOTSOCK'));
  closeFd(fd);
});
