/** pkt-gen's functions on two ports joined by a wire in plain memory (fake-port.ts): what is sent, counted and printed; its options. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { runJob } from '../../../src/cli/commands/pkt-gen.ts';
import { UsageError } from '../../../src/cli/errors.ts';
import { type Job, type PktGenFlags, parseJob } from '../../../src/cli/pkt-gen/options.ts';
import { norm, type PktGenResult, summary } from '../../../src/cli/pkt-gen/report.ts';
import { RttHistogram } from '../../../src/cli/pkt-gen/rtt.ts';
import { Run } from '../../../src/cli/pkt-gen/run.ts';
import { ringName, share } from '../../../src/cli/pkt-gen/threads.ts';
import { type FakePort, wire } from './fake-port.ts';

const job = (flags: PktGenFlags): Job => parseJob({ i: 'vale0:x', ...flags });

/** Runs pkt-gen on a fake port; the lines of its reports go to `lines`. */
function run(port: FakePort, flags: PktGenFlags, lines: string[] = []): { done: Promise<PktGenResult>; run: Run } {
  const r = new Run(job(flags), (text) => lines.push(text));
  return { done: runJob(port, r), run: r };
}

test('tx sends -n packets of -l bytes in batches of at most -b', async () => {
  const [a] = wire();
  const result = await run(a, { f: 'tx', n: '1000', l: ['100'], b: '7' }).done;
  assert.equal(result.packets, 1000);
  assert.equal(result.bytes, 100_000);
  assert.equal(result.events, Math.ceil(1000 / 7));
  assert.equal(a.sent.length, 1000);
  assert.ok(a.sent.every(({ bytes, flags }) => bytes.length === 100 && flags === 0));
  // Every slot's buffer got the packet, with the port's own address as the source.
  for (const { bytes } of a.sent) assert.deepEqual(bytes, a.sent[0]?.bytes);
  assert.deepEqual([...(a.sent[0]?.bytes.subarray(0, 12) ?? [])], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 0x0a]);
});

test('tx with ranges changes every packet', async () => {
  const [a] = wire();
  await run(a, { f: 'tx', n: '200', s: '10.0.0.1:1000-10.0.0.1:1099', D: '02:00:00:00:00:0b' }).done;
  const ports = a.sent.map(({ bytes }) => bytes[34]! * 256 + bytes[35]!);
  assert.deepEqual(
    ports,
    Array.from({ length: 200 }, (_, i) => 1000 + (i % 100)),
  );
});

test('tx with two sizes sends random sizes between them', async () => {
  const [a] = wire();
  const result = await run(a, { f: 'tx', n: '500', l: ['128', '60'], b: '1' }).done;
  const sizes = a.sent.map(({ bytes }) => bytes.length);
  assert.ok(sizes.every((s) => s >= 60 && s < 128));
  assert.ok(new Set(sizes).size > 10);
  assert.equal(
    result.bytes,
    sizes.reduce((x, y) => x + y, 0),
  );
  for (const { bytes } of a.sent) assert.equal(bytes[16]! * 256 + bytes[17]!, bytes.length - 14);
});

test('tx cuts packets into slots with NS_MOREFRAG: -F, -M, and whatever exceeds a buffer', async () => {
  for (const [flags, lengths] of [
    [{ l: ['100'], F: '3' }, [33, 33, 34]],
    [{ l: ['100'], F: '2', M: '40' }, [40, 40, 20]],
    [{ l: ['5000'] }, [2048, 2048, 904]],
    [{ l: ['4096'], F: '2' }, [2048, 2048]],
  ] as const) {
    const [a] = wire();
    const result = await run(a, { f: 'tx', n: '50', ...flags, l: [...flags.l] }).done;
    assert.equal(result.packets, 50);
    assert.equal(a.sent.length, 50 * lengths.length);
    const first = a.sent.slice(-lengths.length);
    assert.deepEqual(
      first.map(({ bytes }) => bytes.length),
      lengths,
    );
    assert.deepEqual(
      first.map(({ flags: f }) => f),
      lengths.map((_, i) => (i < lengths.length - 1 ? 0x20 : 0)),
    );
  }
});

test('a full ring: tx waits, and sends every packet once', async () => {
  const [a, b] = wire(8);
  const result = await run(a, { f: 'tx', n: '100' }).done;
  assert.equal(result.packets, 100);
  assert.equal(a.taken, 100);
  assert.equal(b.dropped, 93);
});

test('tx keeps the rate asked for', async () => {
  const [a] = wire();
  const result = await run(a, { f: 'tx', n: '60', R: '600' }).done;
  // 60 packets at 600/s in bursts of 2: the last leaves after 29 periods of 3.3 ms at the earliest.
  assert.ok(result.seconds >= 0.095, `${result.seconds} s`);
  assert.equal(result.events, 30);
});

test('rx counts packets, and bytes of all slots', async () => {
  const [a, b] = wire();
  const rx = run(b, { f: 'rx', n: '20' });
  for (let i = 0; i < 20; i++) {
    a.receive(new Uint8Array(0), 0); // unrelated
    b.receive(new Uint8Array(100), 0x20);
    b.receive(new Uint8Array(50), 0);
  }
  const result = await rx.done;
  assert.equal(result.packets, 20);
  assert.equal(result.bytes, 3000);
});

test('rx -W ends after a second of silence, not before the first packet', async () => {
  const [, b] = wire();
  const rx = run(b, { f: 'rx', W: true, T: '100000' });
  let polls = 0;
  b.onPoll = () => {
    if (++polls === 5) b.receive(new Uint8Array(60), 0);
  };
  const result = await rx.done;
  assert.equal(result.packets, 1);
  assert.ok(polls > 5);
});

test('txseq and rxseq: all in order; what is lost, late or doubled is found and said', async () => {
  for (const flags of [{}, { '6': true }, { F: '3', l: ['90'] }, { s: '10.0.0.1:1000-10.0.0.1:1009' }] as const) {
    const [a, b] = wire(256);
    const rx = run(b, { f: 'rxseq', n: '50' });
    const { l, ...rest } = { l: undefined, ...flags };
    const tx = run(a, { f: 'txseq', n: '50', b: '10', ...rest, ...(l === undefined ? {} : { l: [...l] }) });
    const [sent, received] = await Promise.all([tx.done, rx.done]);
    assert.deepEqual([sent.packets, received.packets], [50, 50]);
    assert.deepEqual(received.sequence, { gaps: 0, lost: 0, outOfOrder: 0, others: 0 });
  }
  const [a, b] = wire();
  await run(a, { f: 'txseq', n: '20' }).done;
  const packets = a.sent.map(({ bytes }) => bytes);
  const lines: string[] = [];
  const [, other] = wire();
  for (const i of [3, 4, 9, 10, 5, 6, 6, 19]) other.receive(packets[i]!, 0);
  other.receive(new Uint8Array(60), 0);
  const { done, run: r } = run(other, { f: 'rxseq', n: '9' }, lines);
  const result = await done;
  assert.deepEqual(result.sequence, { gaps: 2, lost: 4 + 12, outOfOrder: 2, others: 1 });
  assert.match(summary(r.job, result), /\nSequence: 16 lost in 2 gaps, 2 out of order, 1 packets without a number\n$/);
  assert.deepEqual(lines.slice(0, 2), ['Sequence GAP: exp 5 found 9\n', 'Sequence OUT OF ORDER: exp 11 found 5\n']);
  assert.equal(b.dropped, 0);
});

test('-o: bits that have letters do what these do, 4 and 8 copy always, others are refused', async () => {
  const bits = job({ f: 'tx', o: ['64', '512', '3072'] });
  assert.deepEqual(
    [bits.dump, bits.randomSrc, bits.randomDst, bits.rateStats, bits.rubbish],
    [true, true, true, true, false],
  );
  assert.equal(job({ f: 'tx', o: ['256'] }).rubbish, true);
  assert.equal(job({ f: 'tx', o: ['4096'] }).alwaysCopy, false);
  for (const o of ['1', '2', '16', '32', '128', '36']) {
    assert.throws(() => job({ o: [o] }), /^UsageError: -o: \d+ has no meaning here, only 4, 8, 64/);
  }
  for (const [flags, kept] of [
    [{}, false],
    [{ o: ['4'] }, true],
  ] as const) {
    const [a] = wire(8);
    // Somebody writes over what was sent: it goes out like that in the next lap, or is copied anew.
    a.onPoll = () => {
      a.txsync();
      for (let i = 0; i < 8; i++) a.m.u8.fill(0xee, a.txRings[0]!.bufOfs(i), a.txRings[0]!.bufOfs(i) + 60);
    };
    await run(a, { f: 'tx', n: '40', b: '4', ...('o' in flags ? { o: [...flags.o] } : {}) }).done;
    assert.equal(
      a.sent.every(({ bytes }) => bytes[0] === 0xff),
      kept,
    );
  }
});

test('a signal ends a run, and the result is complete', async () => {
  const [a] = wire();
  a.keepSent = false;
  const tx = run(a, { f: 'tx' });
  setTimeout(() => {
    tx.run.cancelled = true;
  }, 30);
  const result = await tx.done;
  assert.ok(result.packets > 0);
  assert.equal(result.packets, a.taken);
});

test('a sender whose packets nobody takes looks once a millisecond', async () => {
  const [a] = wire();
  const take = a.txsync.bind(a);
  const looks: number[] = [];
  a.txsync = () => void looks.push(performance.now());
  const tx = run(a, { f: 'tx', n: '3' });
  await sleep(100);
  a.txsync = take;
  assert.equal((await tx.done).packets, 3);
  const late = looks.filter((at) => at > looks[0]! + 20);
  // Timers of 1 ms may come by pairs.
  assert.ok(late.length <= 2 * (looks.at(-1)! - looks[0]!), `${late.length} looks`);
});

test('ping and pong: every ping is answered, with addresses exchanged and checksums intact', async () => {
  const [a, b] = wire();
  const pong = run(b, { f: 'pong', n: '25' });
  const ping = run(a, { f: 'ping', n: '25', b: '5', D: b.mac });
  const [answered, result] = await Promise.all([pong.done, ping.done]);
  assert.equal(answered.packets, 25);
  assert.equal(result.rtt?.received, 25);
  assert.equal(result.rtt?.sent, 25);
  assert.ok(result.rtt.minNs > 0 && result.rtt.minNs <= result.rtt.p50Ns && result.rtt.p50Ns <= result.rtt.p99Ns);
  const asked = a.sent[0]?.bytes ?? assert.fail();
  const reply = b.sent[0]?.bytes ?? assert.fail();
  assert.deepEqual([...reply.subarray(0, 6)], [...asked.subarray(6, 12)]);
  assert.deepEqual([...reply.subarray(6, 12)], [...asked.subarray(0, 6)]);
  assert.deepEqual([...reply.subarray(26, 30)], [...asked.subarray(30, 34)]);
  assert.deepEqual([...reply.subarray(42)], [...asked.subarray(42)]);
});

test('ping passes over packets that are no answers', async () => {
  const [a, b] = wire();
  for (let i = 0; i < 5; i++) a.receive(new Uint8Array(60).fill(0xff), 0);
  const pong = run(b, { f: 'pong', n: '3' });
  const result = await run(a, { f: 'ping', n: '3' }).done;
  await pong.done;
  assert.equal(result.rtt?.received, 3);
});

test('pong copies no more than a buffer, whatever length a slot says', async () => {
  const [a, b] = wire();
  b.receive(new Uint8Array(60).fill(7), 0);
  b.rxRings[0]!.setLen(0, 65_535);
  await run(b, { f: 'pong', n: '1' }).done;
  assert.deepEqual(
    b.sent.map(({ bytes }) => bytes.length),
    [b.bufSize],
  );
  assert.equal(a.sent.length, 0);
});

test("reports are pkt-gen's lines", async () => {
  const [a] = wire();
  a.keepSent = false;
  const lines: string[] = [];
  const tx = run(a, { f: 'tx', T: '20' }, lines);
  setTimeout(() => {
    tx.run.cancelled = true;
  }, 120);
  const result = await tx.done;
  assert.ok(lines.length >= 2);
  for (const line of lines) {
    assert.match(
      line,
      /^\d{3}\.\d{6} main_thread \[\d{4}\] \d+\.\d{3} [KMGT]?pps \(\d+\.\d{3} [KMGT]?pkts \d+\.\d{3} [KMGT]?bps in \d+ usec\) \d+\.\d\d avg_batch \d+ min_space\n$/,
    );
  }
  assert.match(
    summary(tx.run.job, result),
    /^Sent \d+ packets \d+ bytes \d+ events 60 bytes each in \d+\.\d\d seconds\.\nSpeed: \d+\.\d{3} [KMGT]?pps Bandwidth: \d+\.\d{3} [KMGT]?bps \(raw \d+\.\d{3} [KMGT]?bps\)\. Average batch: \d+\.\d\d pkts\n$/,
  );
});

test('numbers are shortened as pkt-gen does', () => {
  assert.equal(norm(999, true), '999.000 ');
  assert.equal(norm(1_234_567, true), '1.235 M');
  assert.equal(norm(5e13, true), '50.000 T');
  assert.equal(norm(1_234_567, false), '1234567 ');
});

test('percentiles are at most 3 % too high', () => {
  const h = new RttHistogram();
  const times = Array.from({ length: 10_000 }, (_, i) => 100 + i * i);
  for (const t of times) h.add(t);
  for (const p of [1, 50, 90, 99, 100]) {
    const exact = times[Math.ceil((times.length * p) / 100) - 1] ?? assert.fail();
    const got = h.percentile(p);
    assert.ok(got >= exact && got <= exact * 1.032, `p${p}: ${got}, exactly ${exact}`);
  }
  assert.equal(h.min, 100);
  assert.equal(new RttHistogram().percentile(50), 0);
});

test('wrong options are usage errors that name the option', () => {
  for (const [flags, message] of [
    [{}, /^-i PORT is missing/],
    [{ i: 'vale0:x', f: 'fly' }, /^-f fly: must be one of tx, rx, ping, pong, txseq, rxseq/],
    [{ i: 'vale0:x', l: ['41'] }, /^-l 41: must be a whole number from 42/],
    [{ i: 'vale0:x', f: 'ping', l: ['53'] }, /^-l 53: must be a whole number from 54/],
    [{ i: 'vale0:x', l: ['60', '60'] }, /^-l \(second\) 60/],
    [{ i: 'vale0:x', n: '-1' }, /^-n -1/],
    [{ i: 'vale0:x', s: '10.0.0' }, /^-s 10\.0\.0: must be IP/],
    [{ i: 'vale0:x', d: '10.0.0.1:70000' }, /^-d 10\.0\.0\.1:70000/],
    [{ i: 'vale0:x', D: 'ff:ff' }, /^-D ff:ff: must be an Ethernet address/],
    [{ i: 'vale0:x', C: '1,2,3,4,5' }, /^-C 1,2,3,4,5: at most 4/],
    [{ i: 'vale0:x', f: 'txseq', l: ['45'] }, /^-l 45: must be a whole number from 46/],
    [{ i: 'vale0:x', f: 'txseq', l: ['90', '60'] }, /^-l twice/],
    [{ i: 'vale0:x', f: 'txseq', p: '2' }, /^-p is for tx and rx/],
  ] as const satisfies [PktGenFlags, RegExp][]) {
    assert.throws(
      () => parseJob({ ...flags } as PktGenFlags),
      (e) => e instanceof UsageError && message.test(e.message),
    );
  }
});

test('-C, -s, -R as in pkt-gen', () => {
  assert.deepEqual(job({ C: '512' }).rings, { txSlots: 512, rxSlots: 512 });
  assert.deepEqual(job({ C: '512,256,2' }).rings, { txSlots: 512, rxSlots: 256, txRings: 2, rxRings: 2 });
  assert.deepEqual(job({ s: '10.0.0.9:2000-10.0.0.1:1000' }).src, {
    ip0: 0x0a000001,
    ip1: 0x0a000009,
    port0: 1000,
    port1: 2000,
  });
  assert.equal(job({ f: 'tx', R: '3000' }).burst, 10);
  assert.equal(job({ f: 'tx', R: '10' }).burst, 1);
  assert.equal(job({ f: 'tx' }).burst, 512);
  assert.equal(job({ f: 'ping' }).burst, 1);
});

test('-p: shares of the count, names of the rings, and what it excludes', () => {
  assert.deepEqual(
    [0, 1, 2].map((i) => share(3001, 3, i)),
    [1001, 1000, 1000],
  );
  assert.equal(share(0, 3, 1), 0);
  // A share of 0 would have no end.
  assert.deepEqual(
    ['1', '2', '3', '0'].map((n) => job({ f: 'tx', p: '3', n }).threads),
    [1, 2, 3, 3],
  );
  assert.equal(ringName('vale0:x', 2), 'vale0:x-2');
  assert.equal(ringName('vale0:x/x@lab', 0), 'vale0:x-0/x@lab');
  assert.throws(() => job({ f: 'ping', p: '2' }), /-p is for tx and rx/);
  assert.throws(() => job({ f: 'tx', p: '2', H: '12' }), /exclude each other/);
});
