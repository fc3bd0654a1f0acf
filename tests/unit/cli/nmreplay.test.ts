/** nmreplay: the times, delays and losses that its models give to the packets of a trace; a capture sent through a port. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { NS_MOREFRAG } from '../../../src/api/index.ts';
import { parseBandwidth, parseDelay, parseLoss, random } from '../../../src/cli/nmreplay/models.ts';
import { replay } from '../../../src/cli/nmreplay/replay.ts';
import { Schedule, Trace } from '../../../src/cli/nmreplay/schedule.ts';
import { CaptureWriter } from '../../../src/cli/pcap/writer.ts';
import { FakePort } from './fake-port.ts';

const dir = mkdtempSync(join(tmpdir(), 'ptnet-nmreplay-'));
after(() => rmSync(dir, { recursive: true }));

const trace = (...packets: readonly (readonly [bytes: number, gap: number])[]): Trace =>
  new Trace(packets.map(([bytes, gap], i) => ({ data: new Uint8Array(bytes).fill(i + 1), bytes, gap })));

function times(schedule: Schedule): number[] {
  const list: number[] = [];
  while (schedule.next()) list.push(schedule.time);
  return list;
}
const none = { delay: parseDelay(undefined, Math.random), loss: parseLoss(undefined, Math.random) };

test('-B: the times of the trace, faster, or those of a link', () => {
  const t = trace([100, 0], [100, 1000], [50, 500]);
  const at = (bandwidth: string | undefined): number[] =>
    times(new Schedule(t, 1, parseBandwidth(bandwidth), none.delay, none.loss));
  assert.deepEqual(at(undefined), [0, 1000, 1500]);
  assert.deepEqual(at('real'), [0, 1000, 1500]);
  assert.deepEqual(at('real,2'), [0, 500, 750]);
  assert.deepEqual(at('1G'), [800, 1600, 2000]);
  assert.deepEqual(at('constant,1000M'), [800, 1600, 2000]);
  assert.deepEqual(at('ether,1g'), [992, 1984, 2576]);
  assert.deepEqual(at('0'), [0, 0, 0]);
});

test('-L: a link that loses everything ends a walk that would have no end', () => {
  const t = trace([100, 0], [1500, 0]);
  for (const loss of ['1', 'plr,1', 'ber,0.9']) {
    const all = new Schedule(t, Number.POSITIVE_INFINITY, parseBandwidth('1G'), none.delay, parseLoss(loss, random(1)));
    assert.equal(all.next(), false);
    assert.equal(all.lost, 1_000_000);
    const once = new Schedule(t, 1, parseBandwidth('1G'), none.delay, parseLoss(loss, random(1)));
    assert.deepEqual([once.next(), once.lost], [false, 2]);
  }
});

test('-D: never another order, at least a transmission time apart', () => {
  const t = trace(...Array.from({ length: 500 }, () => [125, 0] as const));
  for (const delay of ['10u', 'constant,10u', 'uniform,1u,50u', 'exp,20u,5u']) {
    const list = times(new Schedule(t, 3, parseBandwidth('1G'), parseDelay(delay, random(7)), none.loss));
    assert.equal(list.length, 1500);
    list.forEach((time, i) => {
      assert.ok(time >= (i + 1) * 1000, 'not before it left the link');
      if (i > 0) assert.ok(time - list[i - 1]! >= 1000, 'spaced');
    });
  }
  const sample = (text: string): number[] => {
    const delay = parseDelay(text, random(3));
    return Array.from({ length: 20_000 }, delay);
  };
  const mean = (list: number[]): number => list.reduce((a, b) => a + b) / list.length;
  const uniform = sample('uniform,1m,3m');
  assert.ok(uniform.every((d) => d >= 1e6 && d <= 3e6));
  assert.ok(Math.abs(mean(uniform) - 2e6) < 2e4);
  const exp = sample('exp,5m,1m');
  assert.ok(exp.every((d) => d >= 1e6));
  assert.ok(Math.abs(mean(exp) - 5e6) < 1e5);
});

test('-L: packets, or bits, are lost with that probability; a lost packet takes no time', () => {
  const t = trace([1250, 0]);
  const lost = (loss: string, loops: number): Schedule => {
    const schedule = new Schedule(t, loops, parseBandwidth('1G'), none.delay, parseLoss(loss, random(5)));
    assert.equal(times(schedule).length + schedule.lost, loops);
    return schedule;
  };
  assert.ok(Math.abs(lost('0.1', 20_000).lost - 2000) < 150);
  assert.ok(Math.abs(lost('plr,0.5', 20_000).lost - 10_000) < 400);
  // 1 - (1 - 1e-5)^10000
  assert.ok(Math.abs(lost('ber,1e-5', 20_000).lost - 1903) < 150);
  assert.equal(lost('0', 100).lost, 0);
  assert.equal(lost('1', 100).lost, 100);
  assert.ok(lost('0.5', 1000).time <= 600 * 10_000);
});

test('the same seed gives the same losses', () => {
  const sequence = (): boolean[] => {
    const loss = parseLoss('0.3', random(42));
    return Array.from({ length: 100 }, () => loss(60));
  };
  assert.deepEqual(sequence(), sequence());
});

test('wrong words are usage errors', () => {
  for (const text of ['x', 'real,0', 'real,2,3', 'ether', 'fast,1M', '1T', '']) {
    assert.throws(() => parseBandwidth(text), /^UsageError: -B .*must be BPS/, text);
  }
  for (const text of ['x', 'uniform,2m,1m', 'exp,1m,2m', 'exp,1m', 'constant,1,2', '1h']) {
    assert.throws(() => parseDelay(text, Math.random), /^UsageError: -D .*must be T/, text);
  }
  for (const text of ['x', '2', 'ber,-1', 'burst,0.1', 'plr,1,2']) {
    assert.throws(() => parseLoss(text, Math.random), /^UsageError: -L .*must be P/, text);
  }
});

test('a capture is read and sent: times, lengths, slots', async () => {
  const file = join(dir, 'a.pcap');
  const writer = new CaptureWriter(file, 'pcap', 3000, 'x');
  for (const [seconds, nanoseconds, length] of [
    [10, 999_000_000, 60],
    [11, 1_000_000, 5000],
    [10, 0, 61],
    [11, 2_000_000, 62],
  ] as const) {
    writer.begin(seconds, nanoseconds, 0);
    writer.add(new Uint8Array(length).fill(length), 0, length);
    writer.end();
  }
  writer.close();
  const t = Trace.read(file);
  assert.deepEqual([...t.gap], [0, 2e6, 0, 1e6], 'time does not go backwards');
  assert.deepEqual([...t.captured], [60, 3000, 61, 62]);
  const port = new FakePort('', 16);
  const { txRings: others } = new FakePort('', 16);
  Object.assign(port, { txRings: [...port.txRings, ...others] });
  const schedule = new Schedule(t, 2, parseBandwidth(undefined), none.delay, none.loss);
  const done = await replay(port, t, schedule, 8, { cancelled: false }, () => undefined);
  assert.equal(others[0]!.cur, others[0]!.tail, 'the room of a ring that it does not use is not waited for');
  const once = [60, 2048, 2048, 904, 61, 62];
  assert.deepEqual(
    port.sent.map((s) => s.bytes.length),
    [...once, ...once],
  );
  assert.deepEqual(
    port.sent.slice(0, 6).map((s) => (s.flags & NS_MOREFRAG) !== 0),
    [false, true, true, false, false, false],
  );
  const big = port.sent.slice(1, 4).flatMap((s) => [...s.bytes]);
  assert.ok(
    big.every((b, i) => b === (i < 3000 ? 5000 % 256 : 0)),
    'what was not captured is zeros',
  );
  assert.deepEqual([done.packets, done.bytes], [8, 2 * (60 + 5000 + 61 + 62)]);
});
