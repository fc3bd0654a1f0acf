/** Looking again before a sleep: for how long, by a clock of the test's own. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { shortTimeSlice, Spin } from '../../../src/os/index.ts';

/** A clock in µs that moves on by `step` whenever it is read. */
function clock(t: TestContext, step: number): { us: number; step: number } {
  const time = { us: 1e6, step };
  t.mock.method(performance, 'now', () => (time.us += time.step) / 1000);
  return time;
}

test('a spin that pays gets longer, up to a limit; one in vain shorter, down to where it began', () => {
  const spin = new Spin(64, () => true);
  const least = spin.us;
  for (let i = 0; i < 20; i++) spin.paid();
  const most = spin.us;
  assert.ok(most > least);
  spin.paid();
  assert.equal(spin.us, most);
  spin.inVain();
  assert.ok(spin.us < most);
  for (let i = 0; i < 20; i++) spin.inVain();
  assert.equal(spin.us, least);
});

test('only a short sleep speaks for spinning', () => {
  const spin = new Spin(64, () => true);
  const least = spin.us;
  spin.slept(5000);
  assert.equal(spin.us, least);
  spin.slept(50);
  assert.ok(spin.us > least);
});

test('who shall not spin alone does not look at all until a spin would have paid; then until something comes, or the end', (t) => {
  const spin = new Spin(0, () => true);
  const time = clock(t, 1);
  let looks = 0;
  const nothing = (): boolean => ++looks < 0;
  assert.equal(spin.until(nothing, 0, Number.POSITIVE_INFINITY), false);
  assert.equal(looks, 0);
  for (let i = 0; i < 5; i++) spin.slept(50);
  assert.equal(
    spin.until((arg) => ++looks === arg, 3, Number.POSITIVE_INFINITY),
    true,
  );
  assert.equal(looks, 3);
  looks = 0;
  assert.equal(spin.until(nothing, 0, (time.us + 10) / 1000), false);
  assert.ok(looks > 0 && looks <= 10, `${looks} looks in 10 µs`);
});

test('who cannot yield spins no longer than alone', () => {
  for (const alone of [0, 64]) {
    let prepared = 0;
    const spin = new Spin(alone, () => ++prepared < 0);
    for (let i = 0; i < 20; i++) spin.paid();
    assert.equal(spin.us, alone);
    assert.equal(prepared, 1);
  }
});

test('a short time slice is the thread’s own, and not of what it starts', () => {
  const slice = (): string => /se\.slice *: *(\d+)/.exec(readFileSync('/proc/thread-self/sched', 'utf8'))?.[1] ?? '';
  const before = slice();
  if (!shortTimeSlice()) return assert.equal(slice(), before);
  assert.equal(slice(), '100000');
  const child = spawnSync('grep', ['se.slice', '/proc/self/sched'], { encoding: 'utf8' }).stdout;
  assert.equal(/(\d+)\s*$/.exec(child)?.[1], before);
});
