/** Giving way to a receiver whose ring is full: how often, by a clock of the test's own. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { Courtesy } from '../../../src/kloop/index.ts';

const SECOND_US = 1e6;
const TURN_US = 5;

/** A clock in µs that moves on by 1 whenever it is read. */
function clock(t: TestContext): { us: number } {
  const time = { us: 1e6 };
  t.mock.method(performance, 'now', () => ++time.us / 1000);
  return time;
}

/**
 * A second of turns, in each of which a ring is full. Yields take `us`.
 * @returns how many there were, and how many µs they took in all
 */
function second(t: TestContext, us: number, taken: boolean): { yields: number; us: number } {
  const time = clock(t);
  const seen = { yields: 0, us: 0 };
  const courtesy = new Courtesy(
    () => true,
    () => {
      seen.yields++;
      seen.us += us;
      time.us += us;
    },
  );
  for (const end = time.us + SECOND_US; time.us < end; time.us += TURN_US) courtesy.giveWay(1, () => taken);
  return seen;
}

test('R8: a receiver that takes frames whenever a thread gives way to it gets a fifth of its time at most, also beside somebody who computes', (t) => {
  for (const us of [1, 8, 100, 4000]) {
    const seen = second(t, us, true);
    assert.ok(seen.yields >= 30, `${seen.yields} yields of ${us} µs`);
    assert.ok(seen.us <= SECOND_US / 5 + us, `${us} µs: ${seen.us} µs of a second`);
  }
});

test('R8: one that takes none gets hardly any', (t) => {
  for (const us of [1, 100]) {
    const seen = second(t, us, false);
    assert.ok(seen.yields > 1 && seen.yields <= 120, `${seen.yields} yields of ${us} µs`);
  }
  assert.ok(second(t, 4000, false).us <= SECOND_US / 5 + 4000);
});

test('a thread that is not to yield does not, and asks once', (t) => {
  const time = clock(t);
  let asked = 0;
  const courtesy = new Courtesy(
    () => ++asked < 0,
    () => assert.fail('yielded'),
  );
  for (let i = 0; i < 3; i++, time.us += SECOND_US) courtesy.giveWay(1, () => true);
  assert.equal(asked, 1);
});
