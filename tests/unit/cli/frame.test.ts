/** The packets that pkt-gen sends: headers, checksums, the walk through ranges, as RFC 791, 8200, 768 and 1071 have them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { views } from '../../../src/abi/index.ts';
import { ipv6Range } from '../../../src/cli/pkt-gen/addresses.ts';
import { Frame, type FrameSpec, MIN_FRAME, MIN_FRAME6, RawPacket } from '../../../src/cli/pkt-gen/frame.ts';

const one = (ip: number, port: number) => ({ ip0: ip, ip1: ip, port0: port, port1: port });
const spec: FrameSpec = {
  size: 60,
  srcMac: [2, 0, 0, 0, 0, 1],
  dstMac: [255, 255, 255, 255, 255, 255],
  src: one(0x0a000001, 1234),
  dst: one(0x0a010001, 1234),
  udpChecksum: true,
};

/** RFC 1071, straight from its text, over a list of parts of even length (but the last). */
function checksum(...parts: readonly Uint8Array[]): number {
  let sum = 0;
  for (const part of parts) for (const [i, b] of part.entries()) sum += i % 2 === 0 ? b * 256 : b;
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 65536);
  return ~sum & 0xffff;
}

function checkSums(frame: Frame): void {
  const b = frame.bytes.subarray(0, frame.size);
  const view = new DataView(b.buffer, 0, frame.size);
  assert.equal(view.getUint16(16), frame.size - 14, 'IPv4 total length');
  assert.equal(view.getUint16(38), frame.size - 34, 'UDP length');
  assert.equal(checksum(b.subarray(14, 34)), 0, 'IPv4 header checksum');
  const pseudo = Uint8Array.from([...b.subarray(26, 34), 0, 17, b[38]!, b[39]!]);
  assert.equal(checksum(pseudo, b.subarray(34)), 0, 'UDP checksum');
  assert.notEqual(view.getUint16(40), 0);
}

test('a packet is Ethernet, IPv4 and UDP as pkt-gen makes it', () => {
  const { bytes, size } = new Frame(spec);
  assert.equal(size, 60);
  assert.deepEqual([...bytes.subarray(0, 14)], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 0]);
  // version and length, TOS, total length, id, DF, TTL, UDP; then, after the checksum, the addresses
  assert.deepEqual([...bytes.subarray(14, 24)], [0x45, 0x10, 0, 46, 0, 0, 0x40, 0, 64, 17]);
  assert.deepEqual([...bytes.subarray(26, 40)], [10, 0, 0, 1, 10, 1, 0, 1, 4, 210, 4, 210, 0, 26]);
  assert.equal(bytes[59], 0, 'the text ends with a NUL');
});

test('checksums are right for any size, shortened or not, and any addresses', () => {
  const address = fc.integer({ min: 0, max: 0xffffffff });
  const port = fc.integer({ min: 0, max: 65535 });
  fc.assert(
    fc.property(
      fc.integer({ min: MIN_FRAME, max: 9000 }),
      address,
      address,
      port,
      port,
      fc.nat(),
      (size, a, b, p, q, less) => {
        const frame = new Frame({ ...spec, size, src: one(a, p), dst: one(b, q) });
        checkSums(frame);
        frame.setSize(MIN_FRAME + (less % (size - MIN_FRAME + 1)));
        checkSums(frame);
      },
    ),
  );
});

test('numbers of txseq: at the beginning of the payload, with right checksums, beside ranges and VirtIO headers', () => {
  fc.assert(
    fc.property(fc.integer({ min: MIN_FRAME + 4, max: 200 }), fc.nat(300), (size, times) => {
      const frame = new Frame({ ...spec, size, sequence: true, src: { ...spec.src, port1: 1300 } });
      for (let i = 0; i <= times; i++) {
        checkSums(frame);
        assert.equal(new DataView(frame.bytes.buffer).getUint32(42), i);
        frame.advance();
      }
    }),
    { numRuns: 20 },
  );
});

test('ranges are walked through: source port, source address, destination port, destination address', () => {
  const frame = new Frame({
    ...spec,
    src: { ip0: 0x0a0000ff, ip1: 0x0a000100, port0: 7, port1: 8 },
    dst: { ip0: 0x0b000001, ip1: 0x0b000002, port0: 65534, port1: 65535 },
  });
  const view = new DataView(frame.bytes.buffer);
  const seen: string[] = [];
  for (let i = 0; i < 17; i++) {
    checkSums(frame);
    seen.push([view.getUint32(26), view.getUint16(34), view.getUint32(30), view.getUint16(36)].join());
    frame.advance();
  }
  const expected = [0x0b000001, 0x0b000002].flatMap((dst) =>
    [65534, 65535].flatMap((dport) =>
      [0x0a0000ff, 0x0a000100].flatMap((src) => [7, 8].map((sport) => [src, sport, dst, dport].join())),
    ),
  );
  assert.deepEqual(seen, [...expected, expected[0]]);
});

test('copyTo writes the packet and at most the rest of a word', () => {
  for (const size of [42, 43, 60, 61, 256, 257, 1514]) {
    const m = views(new SharedArrayBuffer(4096));
    m.u8.fill(0xee);
    const frame = new Frame({ ...spec, size });
    frame.copyTo(m, 64);
    assert.deepEqual([...m.u8.subarray(64, 64 + size)], [...frame.bytes.subarray(0, size)]);
    assert.ok(m.u8.subarray(0, 64).every((b) => b === 0xee));
    assert.ok(m.u8.subarray(64 + ((size + 3) & ~3)).every((b) => b === 0xee));
  }
});

test('without a UDP checksum it is 0', () => {
  const frame = new Frame({ ...spec, udpChecksum: false });
  assert.equal(new DataView(frame.bytes.buffer).getUint16(40), 0);
});

function checkSums6(frame: Frame, at = 0): void {
  const b = frame.bytes.slice(at, at + frame.size);
  const view = new DataView(b.buffer);
  assert.equal(view.getUint16(18), frame.size - 54, 'IPv6 payload length');
  assert.equal(view.getUint16(58), frame.size - 54, 'UDP length');
  const pseudo = Uint8Array.from([...b.subarray(22, 54), 0, 17, b[58]!, b[59]!]);
  assert.equal(checksum(pseudo, b.subarray(54)), 0, 'UDP checksum');
}

test('IPv6: headers, checksums, the walk through one group, a VirtIO header in front', () => {
  const src = ipv6Range('-s', '[fd00::5:1]:7-[fd00::6:1]:8');
  const dst = ipv6Range('-d', 'fe80::1.2.3.4');
  for (const vnetHdrLen of [0, 12]) {
    const frame = new Frame({ ...spec, size: 91, src, dst, vnetHdrLen });
    assert.deepEqual([frame.size, frame.slotLen], [91, 91 + vnetHdrLen]);
    assert.deepEqual([...frame.bytes.subarray(0, vnetHdrLen)], Array(vnetHdrLen).fill(0));
    assert.deepEqual(
      [...frame.bytes.subarray(vnetHdrLen + 12, vnetHdrLen + 22)],
      [0x86, 0xdd, 0x60, 0, 0, 0, 0, 37, 17, 64],
    );
    const seen: string[] = [];
    for (let i = 0; i < 5; i++) {
      checkSums6(frame, vnetHdrLen);
      const view = new DataView(frame.bytes.buffer, vnetHdrLen);
      seen.push([view.getUint16(22), view.getUint16(34), view.getUint16(54), view.getUint32(50)].join());
      frame.advance();
    }
    assert.deepEqual(seen, [
      '64768,5,7,16909060',
      '64768,5,8,16909060',
      '64768,6,7,16909060',
      '64768,6,8,16909060',
      '64768,5,7,16909060',
    ]);
    frame.setSize(MIN_FRAME6);
    checkSums6(frame, vnetHdrLen);
  }
  for (const text of [
    '10.0.0.1',
    'fd00::1:x',
    '[fd00::1',
    '[fd00::1]:99999',
    'fd00::1-fd01::2',
    '::1-::2-::3',
    'fe80::1%eth0',
  ]) {
    assert.throws(() => ipv6Range('-s', text), /-s/, text);
  }
});

test('random addresses and ports, each side on its own, with right checksums', () => {
  for (const [randomSrc, randomDst] of [
    [true, false],
    [false, true],
    [true, true],
  ] as const) {
    const frame = new Frame({ ...spec, randomSrc, randomDst });
    const view = new DataView(frame.bytes.buffer);
    const seen: [Set<number>, Set<number>] = [new Set(), new Set()];
    for (let i = 0; i < 50; i++) {
      checkSums(frame);
      seen[0].add(view.getUint32(26));
      seen[1].add(view.getUint32(30));
      frame.advance();
    }
    assert.deepEqual(
      seen.map((s) => s.size > 40),
      [randomSrc, randomDst],
    );
  }
});

test('a packet of a file is sent as it is, behind a VirtIO header if there is one', () => {
  const m = views(new SharedArrayBuffer(4096));
  for (const length of [61, 1514]) {
    const bytes = Uint8Array.from({ length }, (_, i) => i + 1);
    const packet = new RawPacket(bytes, 12);
    assert.deepEqual([packet.size, packet.slotLen], [length, length + 12]);
    packet.copyTo(m, 64);
    assert.deepEqual(m.u8.slice(76, 76 + length), bytes);
  }
});
