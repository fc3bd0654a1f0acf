/**
 * Hostile bytes, for the server and for the client: random streams and valid sessions with mutations, in random
 * fragments, with descriptors at random places. Nothing throws, hangs, or stays open; the device sees only what the
 * checks let through. fast-check prints the seed of a failure.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { memoryTransportPair, type RegionInfo, ServerConnection, VfioUserClient } from '../../src/vfio-user/index.ts';
import {
  closeFd,
  eventfd,
  frame,
  openFds,
  RecordingDevice,
  turn,
  versionFrame,
  Wire,
} from '../unit/vfio-user/support.ts';

const RUNS = process.env['PTNET_LONG'] === '1' ? 8000 : 400;

/** A device that checks what it is promised, and answers some turns of the loop late. */
class CheckingDevice extends RecordingDevice {
  over = 0;
  running = 0;

  constructor(late: number) {
    super();
    this.hook = async (call) => {
      assert.equal(this.over, 0, `${call} after the end`);
      assert.equal(this.running++, 0, 'handlers overlap');
      for (let i = 0; i < late; i++) await turn();
      this.running--;
      if (call === 'disconnected') this.over++;
    };
  }

  override regionRead(index: number, offset: number, count: number): Uint8Array | Promise<Uint8Array> {
    this.#inside(this.regionInfo(index), offset, count, 1);
    return super.regionRead(index, offset, count);
  }

  override regionWrite(index: number, offset: number, data: Uint8Array): void | Promise<void> {
    this.#inside(this.regionInfo(index), offset, data.length, 2);
    return super.regionWrite(index, offset, data);
  }

  #inside(info: RegionInfo, offset: number, count: number, right: number): void {
    assert.ok(count > 0 && offset >= 0 && BigInt(offset + count) <= BigInt(info.size));
    assert.ok((info.flags & right) !== 0);
  }
}

const u32 = fc.oneof(fc.nat(48), fc.constantFrom(0x20, 0x21, 0x24, 4096, 0x7fffffff, 0xffffffff), fc.nat());
const u64 = fc.oneof(
  u32.map(BigInt),
  fc.constantFrom(0n, 4096n, (1n << 64n) - 4096n, (1n << 64n) - 1n, 1n << 53n),
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
);
const words = (...parts: (number | bigint)[]): Uint8Array =>
  Buffer.concat(
    parts.map((p) => Buffer.from(typeof p === 'bigint' ? BigUint64Array.of(p).buffer : Uint32Array.of(p).buffer)),
  );
const small = fc.nat(8);
const region = fc.constantFrom(0, 0, 0, 1, 3, 4);
const pages = fc.integer({ min: 1, max: 64 }).map((n) => BigInt(n) * 4096n);

/** A piece of a stream and how many descriptors go with its first byte. */
interface Piece {
  readonly bytes: Uint8Array;
  readonly fds: number;
}

const bare = (bytes: Uint8Array): Piece => ({ bytes, fds: 0 });

/** Requests that are right in form and often in content. */
const request: fc.Arbitrary<Piece> = fc.oneof(
  fc.constant(bare(versionFrame('{"capabilities":{"max_msg_fds":16}}'))),
  fc
    .tuple(small, u64, u64, u64, fc.nat(1))
    .map(([flags, ofs, iova, size, fds]) => ({ bytes: frame(1, 2, words(32, flags, ofs, iova, size)), fds })),
  fc.tuple(pages, pages).map((r) => ({ bytes: frame(1, 2, words(32, 3, 0n, ...r)), fds: 1 })),
  fc.tuple(pages, pages).map((r) => bare(frame(1, 3, words(24, 0, ...r)))),
  fc.tuple(fc.nat(2), u64, u64).map(([flags, ...r]) => bare(frame(1, 3, words(24, flags, ...r)))),
  fc.constant(bare(frame(1, 4, words(16, 0, 0, 0)))),
  small.map((index) => bare(frame(1, 5, words(32, 0, index, 0, 0n, 0n)))),
  fc.tuple(u32, small).map(([argsz, index]) => bare(frame(1, 6, words(argsz, 0, index, 0)))),
  small.map((index) => bare(frame(1, 7, words(16, 0, index, 0)))),
  fc.tuple(u32, small, u32, u32).map((r) => bare(frame(1, 8, words(20, ...r)))),
  fc
    .tuple(fc.nat(40), fc.nat(4), fc.boolean())
    .map(([start, count, none]) => ({ start, count, fds: none ? 0 : count }))
    .map(({ start, count, fds }) => ({ bytes: frame(1, 8, words(20, 0x24, 2, start, count)), fds })),
  fc
    .tuple(fc.nat(260), region, fc.integer({ min: 1, max: 20 }))
    .map(([ofs, ...r]) => bare(frame(1, 9, words(BigInt(ofs), ...r)))),
  fc.tuple(u64, small, u32).map((r) => bare(frame(1, 9, words(...r)))),
  fc
    .tuple(fc.nat(256), fc.uint8Array({ minLength: 1, maxLength: 8 }))
    .map(([ofs, data]) => bare(frame(1, 10, Buffer.concat([words(BigInt(ofs), 0, data.length), data])))),
  fc.constant(bare(frame(1, 13))),
  fc
    .tuple(fc.nat(0xffff), fc.uint8Array({ maxLength: 80 }), u32)
    .map(([cmd, body, flags]) => bare(frame(1, cmd, body, { flags }))),
);

const mutation = fc.record({
  at: fc.nat(80),
  kind: fc.constantFrom('flip' as const, 'cut' as const, 'insert' as const, 'size' as const),
  value: fc.nat(255),
});

function mutate(
  bytes: Uint8Array,
  m: { at: number; kind: 'flip' | 'cut' | 'insert' | 'size'; value: number },
): Uint8Array {
  const at = m.at % bytes.length;
  if (m.kind === 'cut') return bytes.slice(0, at);
  if (m.kind === 'insert') return Buffer.concat([bytes.subarray(0, at), Uint8Array.of(m.value), bytes.subarray(at)]);
  const out = bytes.slice();
  out[m.kind === 'size' ? 4 + (m.at % 4) : at] = m.value;
  return out;
}

const piece: fc.Arbitrary<Piece> = fc.oneof(
  { weight: 12, arbitrary: request },
  { weight: 1, arbitrary: fc.tuple(request, fc.nat(18)).map(([r, fds]) => ({ ...r, fds })) },
  { weight: 1, arbitrary: request.map((r) => ({ ...r, bytes: withFlags(r.bytes, 0x10) })) },
  { weight: 1, arbitrary: fc.tuple(request, mutation).map(([r, m]) => ({ ...r, bytes: mutate(r.bytes, m) })) },
  { weight: 1, arbitrary: fc.record({ bytes: fc.uint8Array({ minLength: 1, maxLength: 100 }), fds: fc.nat(2) }) },
);

function withFlags(bytes: Uint8Array, flags: number): Uint8Array {
  const out = bytes.slice();
  out[8] = flags;
  return out;
}

const session = fc.record({
  negotiated: fc.oneof({ weight: 7, arbitrary: fc.constant(true) }, fc.constant(false)),
  pieces: fc.array(piece, { minLength: 1, maxLength: 16 }),
  fragments: fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 }),
  capacity: fc.constantFrom(1, 7, 64, 65536),
  late: fc.nat(8),
});

/** Sends it all and reads what comes back until nothing moves any more. */
async function play(wire: Wire, pieces: readonly Piece[]): Promise<number> {
  const into = new Uint8Array(65536);
  let read = 0;
  const drain = (): boolean => {
    const got = wire.transport.receive(into);
    got.fds.forEach(closeFd);
    read += got.bytes;
    return got.bytes > 0;
  };
  for (const p of pieces) {
    const own = Array.from({ length: p.fds }, () => eventfd());
    let attached = own;
    for (let at = 0, idle = 0; at < p.bytes.length && idle < 20; ) {
      const n = sendOrEnd(wire, p.bytes.subarray(at), attached);
      if (n < 0) break;
      if (n > 0) attached = [];
      at += n;
      const moved = drain();
      idle = n > 0 || moved ? 0 : idle + 1;
      await turn();
    }
    own.forEach(closeFd);
  }
  for (let idle = 0; idle < 12; ) {
    idle = drain() ? 0 : idle + 1;
    await turn();
  }
  return read;
}

/** -1 when the other end is gone. */
function sendOrEnd(wire: Wire, bytes: Uint8Array, attached: readonly number[]): number {
  try {
    return wire.transport.send(bytes, attached);
  } catch {
    return -1;
  }
}

const cycle = (list: readonly number[]): (() => number) => {
  let i = 0;
  return () => list[i++ % list.length]!;
};

test('server: no stream throws, hangs or leaks a descriptor', async () => {
  let served = 0;
  await fc.assert(
    fc.asyncProperty(session, async (s) => {
      const before = openFds();
      const [a, b] = memoryTransportPair({ fragment: cycle(s.fragments), capacity: s.capacity });
      const device = new CheckingDevice(s.late);
      const log: string[] = [];
      const server = new ServerConnection(a, device, { log: (line) => log.push(line) });
      const wire = new Wire(b);
      const hello = { bytes: versionFrame('{"capabilities":{"max_msg_fds":16}}'), fds: 0 };
      await play(wire, s.negotiated ? [hello, ...s.pieces] : s.pieces);
      served += device.calls.length;
      wire.close();
      await server.closed;
      assert.equal(device.over, 1);
      assert.deepEqual(
        log.filter((line) => line.includes('the device failed')),
        [],
      );
      device.destroy();
      assert.equal(openFds(), before);
    }),
    { numRuns: RUNS },
  );
  assert.ok(served > RUNS, `only ${served} requests got through in ${RUNS} runs: the fuzzer has lost its way`);
});

/** Replies to the client's requests 1 to 6: right in form, and others. */
const reply: fc.Arbitrary<Piece> = fc
  .oneof(
    fc.tuple(u32, u32, u32, u32).map((r) => ({ id: 1, cmd: 4, body: words(...r), fds: 0 })),
    fc.tuple(u32, fc.nat(1), u64, u64, fc.nat(1)).map(([flags, index, size, ofs, fds]) => ({
      id: 2,
      cmd: 5,
      body: words(32, flags, index, 0, size, ofs),
      fds,
    })),
    fc.tuple(fc.nat(3), fc.array(fc.tuple(u64, u64, fc.nat(3), fc.nat(8)), { maxLength: 4 })).map(([fds, parts]) => ({
      id: 3,
      cmd: 6,
      body: Buffer.concat([
        words(16 + 40 * parts.length, 0, 0, parts.length),
        ...parts.map(([ofs, size, fd, type]) => words(ofs, size, fd, type >>> 3, 0, 0, 0n)),
      ]),
      fds,
    })),
    fc.tuple(u32, u32).map(([flags, count]) => ({ id: 4, cmd: 7, body: words(16, flags, 2, count), fds: 0 })),
    fc
      .tuple(u32, fc.nat(4))
      .map(([data, n]) => ({ id: 5, cmd: 9, body: words(0n, 0, n === 0 ? 0xffff : 4, data), fds: 0 })),
    fc.constant({ id: 6, cmd: 8, body: words(), fds: 0 }),
    fc.record({ id: fc.nat(7), cmd: fc.nat(18), body: fc.uint8Array({ maxLength: 120 }), fds: fc.nat(18) }),
  )
  .chain((r) =>
    fc
      .oneof({ weight: 12, arbitrary: fc.constant(1) }, fc.constant(0x21), fc.nat(255))
      .map((flags) => ({ bytes: frame(r.id, r.cmd, flags === 0x21 ? '' : r.body, { flags }), fds: r.fds })),
  );
test('client: no answer throws elsewhere than into its caller, hangs or leaks a descriptor', async () => {
  const mutated = fc.tuple(reply, mutation).map(([r, m]) => ({ ...r, bytes: mutate(r.bytes, m) }));
  const replies = fc.array(fc.oneof({ weight: 8, arbitrary: reply }, mutated), { minLength: 1, maxLength: 8 });
  const fragments = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 10 });
  let answered = 0;
  await fc.assert(
    fc.asyncProperty(replies, fragments, async (pieces, sizes) => {
      const before = openFds();
      const [a, b] = memoryTransportPair({ fragment: cycle(sizes) });
      const client = new VfioUserClient(a);
      const wire = new Wire(b);
      const results = Promise.allSettled([
        client.deviceInfo(),
        client.regionInfo(0).then((info) => info.fds.forEach(closeFd)),
        client.regionIoFds(0).then((parts) => new Set(parts.map((p) => p.fd)).forEach(closeFd)),
        client.irqInfo(2),
        client.regionRead(0, 0, 4),
        client.setIrqs({ index: 2, start: 0, fds: [0] }),
      ]);
      await play(wire, pieces);
      wire.close();
      client.close();
      answered += (await results).filter((r) => r.status === 'fulfilled').length;
      await client.closed;
      assert.equal(openFds(), before);
    }),
    { numRuns: RUNS },
  );
  assert.ok(answered > RUNS / 2, `only ${answered} replies were accepted in ${RUNS} runs: the fuzzer has lost its way`);
});
