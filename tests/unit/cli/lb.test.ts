/** lb: the hash of a packet, and the balancer against a model that knows where every buffer is. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { views } from '../../../src/abi/index.ts';
import { NS_BUF_CHANGED, NS_MOREFRAG } from '../../../src/api/index.ts';
import { leavesRegionOpen, regionOf } from '../../../src/cli/regions.ts';
import { Balancer, Output } from '../../../src/cli/lb/balancer.ts';
import { flowHash, seen } from '../../../src/cli/lb/hash.ts';
import { parseLb, pipeNames } from '../../../src/cli/lb/options.ts';
import { Frame } from '../../../src/cli/pkt-gen/frame.ts';
import type { PktRing } from '../../../src/cli/pkt-gen/run.ts';

/** An Ethernet frame with IPv4 and UDP or another protocol. */
function packet(src: number, dst: number, sport: number, dport: number, protocol = 17): Uint8Array {
  const one = (ip: number, port: number) => ({ ip0: ip, ip1: ip, port0: port, port1: port });
  const frame = new Frame({
    size: 60,
    srcMac: [2, 0, 0, 0, 0, 1],
    dstMac: [2, 0, 0, 0, 0, 2],
    src: one(src, sport),
    dst: one(dst, dport),
    udpChecksum: true,
  });
  frame.bytes[23] = protocol;
  return frame.bytes;
}
const hash = (bytes: Uint8Array): number => flowHash(bytes, 0, bytes.length);

test('hash: both directions of a connection are one, others spread evenly', () => {
  const ip = fc.integer({ min: 0, max: 0xffffffff });
  const port = fc.integer({ min: 0, max: 65535 });
  fc.assert(
    fc.property(ip, ip, port, port, (a, b, p, q) => {
      assert.equal(hash(packet(a, b, p, q)), hash(packet(b, a, q, p)));
      assert.equal(seen.ip, true);
    }),
  );
  const counts = Array<number>(7).fill(0);
  for (let i = 0; i < 7000; i++) counts[hash(packet(0x0a000001 + (i >> 6), 0x0a010001, 1000 + (i & 63), 80)) % 7]! += 1;
  for (const n of counts) assert.ok(n > 700 && n < 1300, counts.join());
});

test('hash: fragments go by addresses; tags and IP in IP are looked through; other frames go by Ethernet addresses', () => {
  const plain = packet(1, 2, 3, 4);
  const fragments = [0x2000, 0x0010].map((bits) => {
    const bytes = packet(1, 2, bits, 99);
    bytes.set([bits >> 8, bits & 255], 20);
    return hash(bytes);
  });
  assert.equal(fragments[0], fragments[1]);
  const tagged = Uint8Array.from([...plain.subarray(0, 12), 0x81, 0, 0, 5, ...plain.subarray(12)]);
  assert.equal(hash(tagged), hash(plain));
  const outer = packet(9, 8, 0, 0, 4).subarray(0, 34);
  assert.equal(hash(Uint8Array.from([...outer, ...plain.subarray(14)])), hash(plain));
  const arp = Uint8Array.from([...plain.subarray(0, 12), 8, 6, ...new Uint8Array(46)]);
  const back = Uint8Array.from([...plain.subarray(6, 12), ...plain.subarray(0, 6), 8, 6, ...new Uint8Array(46)]);
  assert.equal(hash(arp), hash(back));
  assert.equal(seen.ip, false);
  assert.equal(hash(new Uint8Array(5)), 0);
  // Any bytes, cut anywhere: a number, and nothing read behind the end.
  fc.assert(fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => hash(bytes) >>> 0 === hash(bytes)));
});

const BUF_SIZE = 64;

/** A ring in plain memory, all rings of a test with one pool of buffers. */
class Ring implements PktRing {
  readonly ringId = 0;
  readonly numSlots: number;
  head = 0;
  cur = 0;
  tail: number;
  readonly idx: number[];
  readonly #len: number[];
  readonly #flags: number[];
  constructor(first: number, slots: number, tail: number) {
    this.numSlots = slots;
    this.tail = tail;
    this.idx = Array.from({ length: slots }, (_, i) => first + i);
    this.#len = Array<number>(slots).fill(0);
    this.#flags = Array<number>(slots).fill(0);
  }
  space = (): number => (this.tail - this.head + this.numSlots) % this.numSlots;
  next = (i: number): number => (i + 1) % this.numSlots;
  bufIdx = (i: number): number => this.idx[i]!;
  setBufIdx(i: number, idx: number): void {
    this.idx[i] = idx;
    this.#flags[i]! |= NS_BUF_CHANGED;
  }
  len = (i: number): number => this.#len[i]!;
  setLen = (i: number, len: number): void => void (this.#len[i] = len);
  flags = (i: number): number => this.#flags[i]!;
  setFlags = (i: number, flags: number): void => void (this.#flags[i] = flags);
  bufOfs = (i: number): number => this.idx[i]! * BUF_SIZE;
  slotOfs = (i: number): number => i;
}

test('balancer against a model: every packet to one pipe of each group, whole, in order; no buffer lost or doubled', () => {
  const arrival = fc.record({
    flow: fc.nat(5),
    slots: fc.oneof(fc.integer({ min: 1, max: 3 }), fc.constantFrom(7, 8, 9)),
  });
  const step = fc.oneof(
    fc.record({ packets: fc.array(arrival, { maxLength: 4 }) }),
    // A receiver of a pipe releases so many slots.
    fc.record({ pipe: fc.nat(3), slots: fc.integer({ min: 1, max: 7 }) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.constantFrom(0, 4, 16), (steps, extraBufs) => {
      const m = views(new SharedArrayBuffer(65536));
      const rx = new Ring(2, 16, 0);
      const rings = Array.from({ length: 4 }, (_, i) => new Ring(32 + 8 * i, 8, 7));
      const extra = Array.from({ length: extraBufs }, (_, i) => 100 + i);
      const outputs = rings.map((ring, i) => new Output(`p${i}`, { txRings: [ring] }, extraBufs));
      const balancer = new Balancer([outputs.slice(0, 2), outputs.slice(2)], extra);
      const all = [...rx.idx, ...rings.flatMap((r) => r.idx), ...extra].sort((x, y) => x - y);
      const got: string[][] = [[], [], [], []];
      const read = rings.map(() => 0);
      let serial = 0;
      const turn = (): void => {
        balancer.passOn();
        balancer.drain();
        balancer.take({ m, bufSize: BUF_SIZE }, rx, 100);
      };
      const release = (pipe: number, count: number): void => {
        const ring = rings[pipe]!;
        for (let n = 0; n < count && read[pipe] !== ring.head; n++) {
          const at = read[pipe]!;
          got[pipe]!.push(`${m.u32[ring.bufOfs(at) / 4 + 15]}${(ring.flags(at) & NS_MOREFRAG) === 0 ? '.' : '+'}`);
          read[pipe] = ring.next(at);
          ring.tail = at;
        }
      };
      for (const s of steps) {
        if ('packets' in s) {
          for (const { flow, slots } of s.packets) {
            if ((rx.head - rx.tail - 1 + 16) % 16 < slots) continue;
            serial += 1;
            for (let i = 0; i < slots; i++) {
              const at = rx.bufOfs(rx.tail);
              m.u8.set(packet(flow, 100, 1, 2), at);
              m.u32[at / 4 + 15] = serial;
              rx.setLen(rx.tail, 60);
              rx.setFlags(rx.tail, i < slots - 1 ? NS_MOREFRAG : 0);
              rx.tail = rx.next(rx.tail);
            }
          }
        } else release(s.pipe, s.slots);
        turn();
      }
      for (let i = 0; i < 200; i++) {
        release(i % 4, 7);
        turn();
      }
      assert.ok(
        outputs.every(({ queue }) => queue.n === 0),
        'nothing is stuck',
      );
      balancer.end();
      const now = [...rx.idx, ...rings.flatMap((r) => r.idx)];
      assert.equal(balancer.freeBuffers, extraBufs);
      assert.equal(new Set(now).size, now.length);
      assert.ok(now.every((idx) => all.includes(idx)));
      // Both groups: packets are whole and in the order of their arrival, and what is missing was counted.
      const count = (list: string[]): number => list.filter((x) => x.endsWith('.')).length;
      for (const list of got) {
        let open = '';
        let last = 0;
        for (const x of list) {
          const id = x.slice(0, -1);
          if (open !== '') assert.equal(id, open, 'a packet is whole');
          else assert.ok(Number(id) > last, 'in order');
          open = x.endsWith('+') ? id : '';
          last = Number(id);
        }
        assert.equal(open, '');
      }
      const dropped = (group: Output[]): number => group.reduce((sum, o) => sum + o.dropped, 0);
      const first = count(got[0]!) + count(got[1]!);
      assert.equal(balancer.received, first + dropped(outputs.slice(0, 2)));
      assert.equal(first, count(got[2]!) + count(got[3]!) + dropped(outputs.slice(2)));
      assert.equal(balancer.received, serial);
    }),
    { numRuns: 300 },
  );
});

test('a pipe that nobody reads: what waits in its queue at the end is counted as dropped; only its first ring is waited for', () => {
  const m = views(new SharedArrayBuffer(65536));
  const [rx, ring, other] = [new Ring(2, 16, 0), new Ring(32, 8, 7), new Ring(40, 8, 7)];
  const out = new Output('p', { txRings: [ring, other] }, 16);
  assert.equal(other.cur, other.tail);
  const balancer = new Balancer(
    [[out]],
    Array.from({ length: 16 }, (_, i) => 100 + i),
  );
  for (let i = 0; i < 15; i++, rx.tail = rx.next(rx.tail)) {
    m.u8.set(packet(1, 100, 1, 2), rx.bufOfs(rx.tail));
    rx.setLen(rx.tail, 60);
  }
  balancer.take({ m, bufSize: BUF_SIZE }, rx, 100);
  assert.deepEqual([balancer.received, out.packets, balancer.dropped], [15, 7, 0]);
  balancer.end();
  assert.deepEqual([out.packets, balancer.dropped, out.droppedBytes, balancer.freeBuffers], [7, 8, 480, 16]);
});

test('a slot longer than its buffer: nothing behind the buffer is read; it goes on as it is', () => {
  const hashes = [0, 1, 2].map((behind) => {
    const m = views(new SharedArrayBuffer(65536));
    const [rx, ring] = [new Ring(2, 16, 1), new Ring(32, 8, 7)];
    const at = rx.bufOfs(0);
    m.u8.set(packet(1, 2, 3, 4), at);
    m.u8[at + 14] = 0x4f; // with options, behind which the ports lie in the next buffer
    m.u8.fill(behind, at + BUF_SIZE, at + 2 * BUF_SIZE);
    // The second time it is no longer than its buffer.
    const len = behind === 1 ? BUF_SIZE : 65535;
    rx.setLen(0, len);
    const out = new Output('p', { txRings: [ring] }, 0);
    new Balancer([[out]], []).take({ m, bufSize: BUF_SIZE }, rx, 100);
    assert.deepEqual([out.packets, ring.len(0)], [1, len]);
    return out.hashes[0];
  });
  assert.equal(new Set(hashes).size, 1);
});

test('options and names of pipes: groups, numbering', () => {
  const { groups, extraBufs } = parseLb({ i: 'vale0:x', p: ['2', 'ids:1', 'ids:2', 'vale1:y:1', 'log:'], B: '5' });
  assert.equal(extraBufs, 5);
  assert.deepEqual(pipeNames(groups, 'vale0:x'), [
    ['vale0:x{0', 'vale0:x{1'],
    ['netmap:ids{0'],
    ['netmap:ids{1', 'netmap:ids{2'],
    ['vale1:y{0'],
    ['netmap:log{0', 'netmap:log{1'],
  ]);
  assert.deepEqual(pipeNames(parseLb({ i: 'vale0:x' }).groups, 'vale0:x'), [['vale0:x{0', 'vale0:x{1']]);
  assert.deepEqual(['vale0:x', 'vale0:x@lab', 'vale0:x@conf:slots=9@7', 'vale0:x@share=y'].map(regionOf), [
    undefined,
    '@lab',
    '@7',
    undefined,
  ]);
  assert.deepEqual(
    ['vale0:x', 'vale0:x/r@conf:slots=9', 'vale0:x@lab', 'vale0:x@share=y', 'ptnet:0'].map(leavesRegionOpen),
    [true, true, false, false, false],
  );
  assert.throws(() => parseLb({}), /-i PORT is missing/);
  assert.throws(() => parseLb({ i: 'vale0:x', p: ['a:b'] }), /-p a:b: must be/);
  assert.throws(() => parseLb({ i: 'vale0:x', p: ['0'] }), /-p 0: must be/);
});
