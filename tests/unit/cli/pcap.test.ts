/** Captures, pcap and pcapng: what others write is read, what we write is read again, what is none is refused. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { CaptureReader } from '../../../src/cli/pcap/reader.ts';
import { type CaptureFormat, CaptureWriter, INBOUND, OUTBOUND } from '../../../src/cli/pcap/writer.ts';

const dir = mkdtempSync(join(tmpdir(), 'ptnet-pcap-'));
after(() => rmSync(dir, { recursive: true }));
const file = join(dir, 'x');

interface Packet {
  readonly seconds: number;
  readonly nanoseconds: number;
  readonly length: number;
  readonly data: number[];
  readonly linkType: number;
}

function readAll(path: string): Packet[] {
  const reader = new CaptureReader(path);
  const packets: Packet[] = [];
  while (reader.next()) {
    const { seconds, nanoseconds, length, linkType } = reader;
    packets.push({ seconds, nanoseconds, length, linkType, data: [...reader.data] });
  }
  reader.close();
  return packets;
}

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));

test('pcap in every byte order and resolution', () => {
  const little = 'd4c3b2a1 0200 0400 00000000 00000000 00000400 01000000  05000000 07000000 03000000 3c000000 aabbcc';
  const big = 'a1b2c3d4 0002 0004 00000000 00000000 00040000 00000001  00000005 00000007 00000003 0000003c aabbcc';
  const nano = '4d3cb2a1 0200 0400 00000000 00000000 00000400 01000000  05000000 07000000 03000000 3c000000 aabbcc';
  for (const [text, nanoseconds] of [
    [little, 7000],
    [big, 7000],
    [nano, 7],
  ] as const) {
    writeFileSync(file, hex(text));
    assert.deepEqual(readAll(file), [{ seconds: 5, nanoseconds, length: 60, linkType: 1, data: [0xaa, 0xbb, 0xcc] }]);
  }
  // The word of the link type also says whether there is an FCS (bit 26), and how long it is.
  writeFileSync(file, hex(big.replace('00000001', '24000001')));
  assert.equal(readAll(file)[0]?.linkType, 1);
});

test('pcapng: sections, interfaces with their resolution, blocks of all kinds, blocks that nobody knows', () => {
  const section = '0a0d0d0a 0000001c 1a2b3c4d 0001 0000 ffffffffffffffff 0000001c';
  const ethernet = '00000001 00000014 0001 0000 00000000 00000014';
  // Link type 101, if_tsresol 2^-4, if_tsoffset 100.
  const raw = '00000001 0000002c 0065 0000 00000000 0009 0001 84000000 000e 0008 0000000000000064 0000 0000 0000002c';
  const unknown = '00000bad 00000010 00000000 00000010';
  const enhanced = '00000006 00000024 00000000 00000000 001e8481 00000003 00000040 aabbcc00 00000024';
  const sixteenths = '00000006 00000020 00000001 00000000 00000028 00000000 00000000 00000020';
  const old = '00000002 00000024 0000 0000 00000000 00000002 00000003 00000003 aabbcc00 00000024';
  const simple = '00000003 00000014 00000002 aabb0000 00000014';
  const second = '0a0d0d0a 1c000000 4d3c2b1a 0100 0000 ffffffffffffffff 1c000000';
  const other = '01000000 14000000 7100 0000 00000000 14000000';
  const little = '06000000 24000000 00000000 00000000 40420f00 01000000 01000000 aa000000 24000000';
  writeFileSync(
    file,
    hex([section, ethernet, raw, unknown, enhanced, sixteenths, old, simple, second, other, little].join('')),
  );
  assert.deepEqual(readAll(file), [
    { seconds: 2, nanoseconds: 1000, length: 64, linkType: 1, data: [0xaa, 0xbb, 0xcc] },
    { seconds: 102, nanoseconds: 500_000_000, length: 0, linkType: 101, data: [] },
    { seconds: 0, nanoseconds: 2000, length: 3, linkType: 1, data: [0xaa, 0xbb, 0xcc] },
    { seconds: 0, nanoseconds: 0, length: 2, linkType: 1, data: [0xaa, 0xbb] },
    { seconds: 1, nanoseconds: 0, length: 1, linkType: 0x71, data: [0xaa] },
  ]);
});

for (const format of ['pcap', 'pcapng'] as const satisfies CaptureFormat[]) {
  test(`what is written as ${format} is read again, cut at the snap length`, () => {
    const packet = fc.record({
      seconds: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      nanoseconds: fc.integer({ min: 0, max: 999_999_999 }),
      pieces: fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 4 }),
      direction: fc.constantFrom(0, INBOUND, OUTBOUND),
    });
    fc.assert(
      fc.property(
        fc.array(packet),
        fc.integer({ min: 1, max: 1000 }),
        fc.string({ maxLength: 20 }),
        (list, snap, name) => {
          const writer = new CaptureWriter(file, format, snap, name);
          for (const { seconds, nanoseconds, pieces, direction } of list) {
            writer.begin(seconds, nanoseconds, direction);
            for (const piece of pieces) writer.add(piece, 0, piece.length);
            writer.end();
          }
          writer.close();
          assert.equal(writer.bytes, readFileSync(file).length);
          const expected = list.map(({ seconds, nanoseconds, pieces }) => {
            const data = pieces.flatMap((p) => [...p]);
            return { seconds, nanoseconds, length: data.length, linkType: 1, data: data.slice(0, snap) };
          });
          assert.deepEqual(readAll(file), expected);
        },
      ),
      { numRuns: 50 },
    );
  });
}

test('files larger than the buffers', () => {
  const writer = new CaptureWriter(file, 'pcapng', 65535, 'x');
  const data = Uint8Array.from({ length: 1500 }, (_, i) => i);
  for (let i = 0; i < 3000; i++) {
    writer.begin(i, 0, 0);
    data[0] = i;
    writer.add(data, 0, data.length);
    writer.end();
  }
  writer.close();
  const packets = readAll(file);
  assert.equal(packets.length, 3000);
  assert.ok(packets.every((p, i) => p.seconds === i && p.data[0] === i % 256 && p.data[1499] === 1499 % 256));
});

test('what is no capture, or ends in the middle, is an error that names the file', () => {
  writeFileSync(
    file,
    hex('d4c3b2a1 0200 0400 00000000 00000000 00000400 01000000  05000000 07000000 03000000 3c000000 aabb'),
  );
  assert.throws(() => readAll(file), /x ends in a packet$/);
  writeFileSync(file, 'GIF89a');
  assert.throws(() => readAll(file), /x is neither pcap nor pcapng$/);
  writeFileSync(file, '');
  assert.throws(() => readAll(file), /neither/);
  assert.throws(() => readAll(join(dir, 'none')), { code: 'ENOENT' });
  writeFileSync(file, hex('0a0d0d0a 0000001c 1a2b3c4d 0001 0000 ffffffffffffffff 0000001c 00000001 0000000c 0000000c'));
  assert.throws(() => readAll(file), /x has a description of an interface of 12 bytes$/);
  // Any bytes behind a header: an error or packets, never anything else.
  const start = hex(
    '0a0d0d0a 0000001c 1a2b3c4d 0001 0000 ffffffffffffffff 0000001c 00000001 00000014 0001 0000 00000000 00000014',
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      writeFileSync(file, Buffer.concat([start, bytes]));
      try {
        readAll(file);
      } catch (e) {
        assert.equal((e as Error).name, 'CaptureError', String(e));
      }
    }),
    { numRuns: 300 },
  );
});
