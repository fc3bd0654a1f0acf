/**
 * What clients do wrong, one message at a time: the errno of the reply, whether the connection goes on, what the device
 * gets to see (nothing), and that no descriptor stays open. After the list of libvfio-user's test_request_errors.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VfioUserError } from '../../../src/vfio-user/index.ts';
import { closeFd, eventfd, frame, kinds, openFds, type Raw, serveRaw, versionFrame } from './support.ts';

const EIO = 5;
const E2BIG = 7;
const EINVAL = 22;
const EPERM = 1;
const ENOTSUP = 95;

interface Case {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly fds?: number;
  /** errno of the reply. */
  readonly error: number;
  /** Part of the log's text. */
  readonly says: string;
  /** Whether the connection ends. */
  readonly ends?: boolean;
}

const u32 = (...words: number[]): string =>
  words.map((w) => Buffer.from(Uint32Array.of(w).buffer).toString('hex')).join('');
const u64 = (...words: bigint[]): string =>
  words.map((w) => Buffer.from(BigUint64Array.of(w).buffer).toString('hex')).join('');
const dmaMap = (flags: number, ofs: bigint, iova: bigint, size: bigint, argsz = 32): Uint8Array =>
  frame(9, 2, u32(argsz, flags) + u64(ofs, iova, size));
const dmaUnmap = (flags: number, iova: bigint, size: bigint, argsz = 24): Uint8Array =>
  frame(9, 3, u32(argsz, flags) + u64(iova, size));
const setIrqs = (flags: number, index: number, start: number, count: number, more = '', argsz = 20): Uint8Array =>
  frame(9, 8, u32(argsz, flags, index, start, count) + more);
const access = (cmd: number, ofs: bigint, region: number, count: number, data = ''): Uint8Array =>
  frame(9, cmd, u64(ofs) + u32(region, count) + data);

const cases: readonly Case[] = [
  { name: 'size less than a header', bytes: frame(9, 8, '', { size: 15 }), error: EINVAL, says: '15', ends: true },
  {
    name: 'size too large',
    bytes: frame(9, 8, '', { size: 0x7fffffff }),
    error: EINVAL,
    says: 'more than',
    ends: true,
  },
  { name: 'a reply to nothing', bytes: frame(9, 8, u32(0), { flags: 1 }), error: EINVAL, says: 'nothing was asked' },
  { name: 'unknown message type', bytes: frame(9, 13, '', { flags: 7 }), error: EINVAL, says: 'known type' },
  { name: 'no such command', bytes: frame(9, 999, '00'), error: EINVAL, says: 'command 999: no such command' },
  { name: 'command 0', bytes: frame(9, 0), error: EINVAL, says: 'no such command' },
  { name: 'a command that servers send', bytes: frame(9, 11, u64(0n, 4n)), error: ENOTSUP, says: 'DMA_READ' },
  { name: 'DEVICE_FEATURE', bytes: frame(9, 16, u32(8, 0x10001)), error: ENOTSUP, says: 'DEVICE_FEATURE' },
  { name: 'WRITE_MULTI', bytes: frame(9, 15, u64(0n)), error: ENOTSUP, says: 'REGION_WRITE_MULTI' },
  { name: 'no payload', bytes: frame(9, 8), error: EINVAL, says: 'body of 0 bytes' },
  { name: 'VERSION again', bytes: versionFrame('{}'), error: EINVAL, says: 'second time' },
  { name: 'RESET with a body', bytes: frame(9, 13, u32(0)), error: EINVAL, says: 'body of 4 bytes' },
  { name: 'GET_INFO one byte short', bytes: frame(9, 4, '0'.repeat(30)), error: EINVAL, says: 'body of 15 bytes' },
  { name: 'GET_INFO one byte long', bytes: frame(9, 4, '0'.repeat(34)), error: EINVAL, says: 'body of 17 bytes' },
  { name: 'GET_INFO, small argsz', bytes: frame(9, 4, u32(15, 0, 0, 0)), error: EINVAL, says: 'argsz 15' },
  {
    name: 'GET_REGION_INFO, index',
    bytes: frame(9, 5, u32(32, 0, 4, 0, 0, 0, 0, 0)),
    error: EINVAL,
    says: 'region 4 of 4',
  },
  { name: 'GET_REGION_INFO, argsz', bytes: frame(9, 5, u32(31, 0, 0, 0, 0, 0, 0, 0)), error: EINVAL, says: 'argsz' },
  { name: 'GET_IRQ_INFO, index', bytes: frame(9, 7, u32(16, 0, 5, 0)), error: EINVAL, says: 'index 5 of 5' },
  { name: 'GET_IRQ_INFO, refused', bytes: frame(9, 7, u32(16, 0, 3, 0)), error: EINVAL, says: 'no such interrupt' },
  { name: 'GET_REGION_IO_FDS, flags', bytes: frame(9, 6, u32(96, 1, 0, 0)), error: EINVAL, says: 'must be 0' },
  { name: 'GET_REGION_IO_FDS, count', bytes: frame(9, 6, u32(96, 0, 0, 1)), error: EINVAL, says: 'must be 0' },
  { name: 'GET_REGION_IO_FDS, argsz', bytes: frame(9, 6, u32(15, 0, 0, 0)), error: EINVAL, says: 'argsz' },
  { name: 'GET_REGION_IO_FDS, index', bytes: frame(9, 6, u32(96, 0, 512, 0)), error: EINVAL, says: 'region 512' },
  {
    name: 'descriptors where none belong',
    bytes: frame(9, 13),
    fds: 1,
    error: EINVAL,
    says: '1 descriptors, at most 0',
  },
  { name: 'two descriptors for one map', bytes: dmaMap(3, 0n, 0n, 1n), fds: 2, error: EINVAL, says: '2 descriptors' },
  { name: 'DMA_MAP, size 0', bytes: dmaMap(3, 0n, 0n, 0n), fds: 1, error: EINVAL, says: 'size 0' },
  { name: 'DMA_MAP, wraps', bytes: dmaMap(3, 0n, (1n << 64n) - 4096n, 4097n), fds: 1, error: EINVAL, says: '64 bits' },
  { name: 'DMA_MAP, offset wraps', bytes: dmaMap(3, 1n << 53n, 0n, 1n), fds: 1, error: EINVAL, says: '53 bits' },
  { name: 'DMA_MAP, flags', bytes: dmaMap(8, 0n, 0n, 4096n), fds: 1, error: EINVAL, says: 'flags 0x8' },
  { name: 'DMA_MAP, argsz', bytes: dmaMap(3, 0n, 0n, 4096n, 31), fds: 1, error: EINVAL, says: 'argsz' },
  { name: 'DMA_UNMAP, beyond', bytes: dmaUnmap(0, 2n, (1n << 64n) - 1n), error: EINVAL, says: '64 bits' },
  { name: 'DMA_UNMAP, dirty bitmap', bytes: dmaUnmap(1, 0n, 4096n), error: EINVAL, says: 'flags 0x1' },
  { name: 'DMA_UNMAP all, with a range', bytes: dmaUnmap(2, 0n, 4096n), error: EINVAL, says: 'not 0' },
  { name: 'DMA_UNMAP, argsz', bytes: dmaUnmap(0, 0n, 0n, 23), error: EINVAL, says: 'argsz' },
  { name: 'SET_IRQS, index', bytes: setIrqs(0x24, 5, 0, 1), fds: 1, error: EINVAL, says: 'index 5' },
  { name: 'SET_IRQS, refused index', bytes: setIrqs(0x24, 3, 0, 1), fds: 1, error: EINVAL, says: 'no such interrupt' },
  { name: 'SET_IRQS, start', bytes: setIrqs(0x24, 2, 40, 1), fds: 1, error: EINVAL, says: '40 to 41 of 40' },
  { name: 'SET_IRQS, overflow', bytes: setIrqs(0x24, 2, 1, 0xffffffff), error: EINVAL, says: 'of 40' },
  { name: 'SET_IRQS, fewer descriptors', bytes: setIrqs(0x24, 2, 0, 3), fds: 2, error: EINVAL, says: '2 descriptors' },
  { name: 'SET_IRQS, more descriptors', bytes: setIrqs(0x24, 2, 0, 1), fds: 2, error: EINVAL, says: '2 descriptors' },
  { name: 'SET_IRQS, two kinds of data', bytes: setIrqs(0x26, 2, 0, 1), error: EINVAL, says: '0x26' },
  { name: 'SET_IRQS, two actions', bytes: setIrqs(0x34, 2, 0, 1), error: EINVAL, says: '0x34' },
  { name: 'SET_IRQS, unknown flag', bytes: setIrqs(0x80000024, 2, 0, 1), error: EINVAL, says: '0x80000024' },
  { name: 'SET_IRQS, no action', bytes: setIrqs(4, 2, 0, 1), error: EINVAL, says: '0x4' },
  { name: 'SET_IRQS, count 0 of eventfds', bytes: setIrqs(0x24, 2, 0, 0), error: EINVAL, says: 'count 0' },
  { name: 'SET_IRQS, all off from 1', bytes: setIrqs(0x21, 2, 1, 0), error: EINVAL, says: 'count 0' },
  {
    name: 'SET_IRQS, descriptors to none',
    bytes: setIrqs(0x21, 2, 0, 0),
    fds: 1,
    error: EINVAL,
    says: '1 descriptors',
  },
  { name: 'SET_IRQS, mask', bytes: setIrqs(0x0c, 2, 0, 1), error: ENOTSUP, says: 'only eventfds' },
  { name: 'SET_IRQS, trigger by hand', bytes: setIrqs(0x21, 2, 0, 1), error: ENOTSUP, says: 'only eventfds' },
  { name: 'SET_IRQS, booleans', bytes: setIrqs(0x22, 2, 0, 2, '0101'), error: ENOTSUP, says: 'only eventfds' },
  { name: 'SET_IRQS, booleans missing', bytes: setIrqs(0x22, 2, 0, 2, '01'), error: EINVAL, says: 'for 2 vectors' },
  { name: 'SET_IRQS, data with eventfds', bytes: setIrqs(0x24, 2, 0, 1, '00000000'), error: EINVAL, says: '24 bytes' },
  { name: 'SET_IRQS, argsz', bytes: setIrqs(0x21, 2, 0, 0, '', 19), error: EINVAL, says: 'argsz' },
  { name: 'READ, count 0', bytes: access(9, 0n, 0, 0), error: EINVAL, says: 'count 0' },
  { name: 'READ, count over the limit', bytes: access(9, 0n, 3, 0x100001), error: EINVAL, says: 'count 1048577' },
  { name: 'READ, past the end', bytes: access(9, 253n, 0, 4), error: EINVAL, says: 'outside' },
  { name: 'READ, offset of 64 bits', bytes: access(9, 0xffffffffffffffffn, 0, 1), error: EINVAL, says: 'outside' },
  { name: 'READ, absent region', bytes: access(9, 0n, 2, 1), error: EINVAL, says: 'outside' },
  { name: 'READ, no such region', bytes: access(9, 0n, 4, 1), error: EINVAL, says: 'region 4 of 4' },
  { name: 'READ with data', bytes: access(9, 0n, 0, 1, '00'), error: EINVAL, says: 'body of 17 bytes' },
  { name: 'WRITE, read-only region', bytes: access(10, 0n, 3, 1, '00'), error: EPERM, says: 'no right' },
  { name: 'WRITE, data missing', bytes: access(10, 0n, 0, 4, '000000'), error: EINVAL, says: 'for 4 bytes' },
  { name: 'WRITE, data too long', bytes: access(10, 0n, 0, 4, '0000000000'), error: EINVAL, says: 'for 4 bytes' },
];

async function negotiated(r: Raw, json = '{"capabilities":{"max_msg_fds":16}}'): Promise<void> {
  const reply = await r.wire.call(versionFrame(json));
  assert.equal(reply?.error, 0);
}

for (const kind of kinds) {
  test(`${kind}: every bad request gets its errno, reaches no handler, and leaves no descriptor open`, async (t) => {
    for (const c of cases) {
      await t.test(c.name, async () => {
        const before = openFds();
        await using r = serveRaw(kind);
        await negotiated(r);
        const fds = Array.from({ length: c.fds ?? 0 }, () => eventfd());
        const reply = await r.wire.call(c.bytes, fds);
        fds.forEach(closeFd);
        assert.equal(reply?.error, c.error);
        assert.equal(reply?.flags, 0x21);
        assert.equal(reply?.body, '');
        const line = r.log.at(-1) ?? '';
        assert.ok(line.includes(c.says), `log: ${line}`);
        assert.deepEqual(
          r.device.calls.filter((call) => call !== 'disconnected'),
          [],
        );
        if (c.ends === true) assert.equal(await r.wire.receive(), undefined);
        else assert.equal((await r.wire.call(frame(10, 13)))?.error, 0);
        await r[Symbol.asyncDispose]();
        assert.equal(openFds(), before);
      });
    }
  });
}

const versions: readonly {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly error: number;
  readonly body?: string;
}[] = [
  { name: 'no JSON at all', bytes: frame(1, 1, '00000000'), error: 0, body: '00000000' },
  { name: 'an empty object', bytes: versionFrame('{}'), error: 0, body: '000000007b7d00' },
  { name: 'empty capabilities', bytes: versionFrame('{"capabilities":{}}'), error: 0, body: '000000007b7d00' },
  { name: 'unknown names', bytes: versionFrame('{"x":1,"capabilities":{"y":[]}}'), error: 0 },
  { name: 'a newer minor version', bytes: frame(1, 1, '00000900'), error: 0, body: '00000000' },
  { name: 'no NUL', bytes: frame(1, 1, '00000000 7b7d'), error: EINVAL },
  { name: 'only a NUL', bytes: frame(1, 1, '00000000 00'), error: EINVAL },
  { name: 'a NUL inside', bytes: frame(1, 1, '00000000 7b7d00 7b7d00'), error: EINVAL },
  { name: 'not UTF-8', bytes: frame(1, 1, '00000000 7bff7d00'), error: EINVAL },
  { name: 'half a body', bytes: frame(1, 1, '0000'), error: EINVAL },
  { name: 'major version 1', bytes: versionFrame('{}', 1), error: EINVAL },
  { name: 'too long', bytes: versionFrame(`{}${' '.repeat(4096)}`), error: EINVAL },
  ...['{', '"', 'null', '[]', '7', '{"capabilities":"23"}', '{"capabilities":null}'].map((json) => ({
    name: `JSON ${json}`,
    bytes: versionFrame(json),
    error: EINVAL,
  })),
  ...['"foo"', '-1', '0', '1.5', 'null', '1e400', '[]', '99999999999999999999'].map((value) => ({
    name: `max_msg_fds ${value}`,
    bytes: versionFrame(`{"capabilities":{"max_msg_fds":${value}}}`),
    error: EINVAL,
  })),
  {
    name: 'max_data_xfer_size 0',
    bytes: versionFrame('{"capabilities":{"max_data_xfer_size":0}}'),
    error: EINVAL,
  },
];

test('VERSION: sense is answered with no more than was sent, nonsense with EINVAL', async (t) => {
  for (const v of versions) {
    await t.test(v.name, async () => {
      await using r = serveRaw();
      const reply = await r.wire.call(v.bytes);
      assert.equal(reply?.error, v.error);
      assert.ok(16 + reply!.body.length / 2 <= v.bytes.length);
      if (v.body !== undefined) assert.equal(reply?.body, v.body);
    });
  }
});

test('nothing but VERSION is served before VERSION, which may be tried again', async () => {
  await using r = serveRaw();
  assert.equal((await r.wire.call(frame(1, 13)))?.error, EINVAL);
  assert.match(r.log.at(-1)!, /VERSION must come first/);
  assert.equal((await r.wire.call(versionFrame('{}', 3)))?.error, EINVAL);
  assert.equal((await r.wire.call(versionFrame('{}')))?.error, 0);
  assert.equal((await r.wire.call(frame(2, 13)))?.error, 0);
  assert.deepEqual(r.device.calls, ['reset']);
});

test('GET_REGION_IO_FDS: too little room gives the size needed and no descriptor', async () => {
  await using r = serveRaw();
  await negotiated(r);
  const reply = await r.wire.call(frame(9, 6, u32(95, 0, 0, 0)));
  assert.equal(reply?.body, u32(96, 0, 0, 2));
  assert.equal(reply?.fds.length, 0);
});

test('GET_REGION_IO_FDS: more descriptors than the client takes are refused', async () => {
  await using r = serveRaw();
  const other = eventfd();
  r.device.regionIoFds = () => [r.device.kickFd, other].map((fd) => ({ fd, offset: 0, size: 4 }));
  await negotiated(r, '{}');
  assert.equal((await r.wire.call(frame(9, 6, u32(96, 0, 0, 0))))?.error, E2BIG);
  closeFd(other);
});

test('a read is no longer than the client can receive', async () => {
  await using r = serveRaw();
  await negotiated(r, '{"capabilities":{"max_data_xfer_size":8}}');
  assert.equal((await r.wire.call(access(9, 0n, 0, 8)))?.error, 0);
  assert.equal((await r.wire.call(access(9, 0n, 0, 9)))?.error, EINVAL);
});

test('NO_REPLY: no reply, neither to what works nor to what fails; the next reply is the next request’s', async () => {
  await using r = serveRaw();
  await negotiated(r);
  await r.wire.send(frame(5, 13, '', { flags: 0x10 }));
  await r.wire.send(frame(6, 999, '', { flags: 0x10 }));
  assert.equal((await r.wire.call(frame(7, 13)))?.id, 7);
  assert.deepEqual(r.device.calls, ['reset', 'reset']);
});

test('a handler that fails: its errno, or EIO and a log line with the stack; the connection goes on', async () => {
  for (const [error, expected, says] of [
    [new VfioUserError(16, 'busy now'), 16, /DEVICE_RESET: busy now \(EBUSY\)/],
    [new TypeError('a bug'), EIO, /the device failed: TypeError: a bug\n\s+at /],
    ['a string', EIO, /the device failed: a string/],
  ] as const) {
    for (const asynchronous of [false, true]) {
      await using r = serveRaw();
      await negotiated(r);
      r.device.hook = () => {
        r.device.hook = () => {};
        if (asynchronous) return Promise.reject(error);
        throw error;
      };
      assert.equal((await r.wire.call(frame(1, 13)))?.error, expected);
      assert.match(r.log.at(-1)!, says);
      assert.equal((await r.wire.call(frame(2, 13)))?.error, 0);
    }
  }
});

test('a device that reads too little is our bug: EIO', async () => {
  await using r = serveRaw();
  await negotiated(r);
  r.device.regionRead = () => new Uint8Array(3);
  assert.equal((await r.wire.call(access(9, 0n, 0, 4)))?.error, EIO);
  assert.match(r.log.at(-1)!, /read 3 bytes where 4/);
});

test('addresses up to the last one of 64 bits are served', async () => {
  await using r = serveRaw();
  await negotiated(r);
  assert.equal((await r.wire.call(dmaUnmap(0, 1n, (1n << 64n) - 1n)))?.error, 0);
  assert.equal((await r.wire.call(dmaMap(1, 0n, (1n << 64n) - 4096n, 4096n)))?.error, 0);
});

test('descriptors with a later byte than the header are refused and closed', async () => {
  const before = openFds();
  await using r = serveRaw();
  await negotiated(r);
  const message = dmaMap(3, 0n, 0n, 4096n);
  const fd = eventfd();
  await r.wire.send(message.subarray(0, 20), [fd]);
  await r.wire.send(message.subarray(20), [fd]);
  closeFd(fd);
  const reply = await r.wire.receive();
  assert.equal(reply?.error, EINVAL);
  assert.match(r.log.at(-1)!, /in the middle of a message/);
  await r[Symbol.asyncDispose]();
  assert.equal(openFds(), before);
});

test('descriptors with each byte of a header are counted together', async () => {
  const before = openFds();
  await using r = serveRaw();
  await negotiated(r);
  const message = frame(9, 13);
  const fds = Array.from({ length: 10 }, () => eventfd());
  for (let i = 0; i < 3; i++) await r.wire.send(message.subarray(i, i + 1), fds);
  await r.wire.send(message.subarray(3));
  fds.forEach(closeFd);
  assert.equal((await r.wire.receive())?.error, EINVAL);
  assert.match(r.log.at(-1)!, /more than 16 descriptors/);
  await r[Symbol.asyncDispose]();
  assert.equal(openFds(), before);
});

test('one client cannot flood the log', async () => {
  await using r = serveRaw();
  await negotiated(r);
  for (let i = 0; i < 300; i++) await r.wire.call(frame(i, 999));
  assert.equal(r.log.length, 101);
  assert.match(r.log.at(-1)!, /not logged/);
});
