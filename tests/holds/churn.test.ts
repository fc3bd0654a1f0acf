/**
 * Guests and daemons that come, go and are killed: what the daemon holds (descriptors, mappings, shared memory, arena)
 * is what it was, and nobody else loses a packet.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { type Holdings, type HoldsLab, type Process, until, withLab } from './lab.ts';

type All = Awaited<ReturnType<HoldsLab['holdings']>>;

/** Equal, but for what Node itself maps as it pleases (heaps of V8) and pages of shared memory touched since. */
function assertSame(now: All, then: All): void {
  assert.equal(now.fds, then.fds, 'descriptors');
  assert.deepEqual(now.freeRanges, then.freeRanges, 'free ranges of the arena');
  assert.equal(now.shmemKb, then.shmemKb, 'Shmem');
  assert.equal(now.shared, then.shared, 'shared mappings');
  // V8 lets its heaps grow to some hundred pages of 256 KiB before it collects; a mapping left by each of 990 cycles is more.
  assert.ok(now.mappings - then.mappings < 600, `mappings: ${then.mappings}, now ${now.mappings}`);
}

const show = ({ fds, mappings, shared, shmemKb }: Holdings): string =>
  `${fds} descriptors, ${mappings} mappings (${shared} shared), ${shmemKb} KiB Shmem`;

test('1000 attach/detach cycles: everything is given back', (t) =>
  withLab(async (lab) => {
    const guest = lab.guest('cycle', 'vale0:x', 10, 500, 1000);
    await guest.line(/^cycles 10$/);
    await lab.quiet();
    const tenth = await lab.holdings();
    t.diagnostic(`after 10: ${show(tenth)}`);
    for (const n of [500, 1000]) {
      guest.child.stdin.write('\n');
      await guest.line(new RegExp(`^cycles ${n}$`));
      await lab.quiet();
      const now = await lab.holdings();
      t.diagnostic(`after ${n}: ${show(now)}`);
      assertSame(now, tenth);
    }
    guest.child.stdin.write('\n');
    await guest.success();
  }));

test('R19: 100 guests killed (-9) in traffic: everything is given back, and a stream beside them loses nothing', (t) =>
  withLab(async (lab) => {
    // The stream has a switch of its own: on a flooded one, what VALE drops at a full receiver is no fault.
    const count = 1e9;
    const rx = lab.guest('stream', 'vale1:b', 'ack', 600, count, '02:00:00:00:00:01');
    const [, mac] = await rx.line(/^ready (\S+)/);
    const tx = lab.guest('stream', 'vale1:a', 'paced', 600, count, mac!);
    await tx.line(/^ready/);
    const batch = async (round: number): Promise<void> => {
      const guests: Process[] = [];
      for (let i = 0; i < 5; i++) guests.push(lab.guest('traffic', `vale0:g${i}`));
      for (const [i, guest] of guests.entries()) {
        await guest.line(/^running/);
        await setTimeout((round * 7 + i * 3) % 20);
        guest.kill('SIGKILL');
      }
      await Promise.all(guests.map((g) => g.exited));
      await until('the killed guests’ ports are gone', async () => {
        const domain = (await lab.status()).domains.find((d) => d.name === 'vale0');
        return domain === undefined || domain.ports.length === 0 ? true : undefined;
      });
    };
    for (let round = 0; round < 2; round++) await batch(round);
    const tenth = await lab.holdings();
    t.diagnostic(`after 10 kills: ${show(tenth)}`);
    for (let round = 2; round < 20; round++) await batch(round);
    assert.equal(tx.ended || rx.ended, false, `the stream beside goes on: ${tx.stderr}${rx.stderr}`);
    const now = await lab.holdings();
    t.diagnostic(`after 100 kills: ${show(now)}`);
    assertSame(now, tenth);
    const { packets } = (await lab.port('vale1:b'))!.rxRings[0]!;
    t.diagnostic(`${packets} packets of the stream beside, all in order`);
    assert.ok(packets > 0);
  }));

test('20 daemons killed (-9): guests are told, the next daemon takes the run directory over', () =>
  withLab(
    async (lab) => {
      const socket = join(lab.dir, 'vm', 'fw', 'ptnet0.sock');
      for (let round = 0; round < 20; round++) {
        const guests = round % 4 === 0 ? [lab.guest('traffic', 'vale0:a'), lab.guest('traffic', 'vale0:b')] : [];
        for (const guest of guests) await guest.line(/^running/);
        lab.daemon.kill('SIGKILL');
        await lab.daemon.exited;
        assert.ok(existsSync(socket), 'a killed daemon leaves its sockets');
        for (const guest of guests) {
          await guest.line(/^gone the daemon of port vale0:[ab] is gone/);
          await guest.success();
        }
        await lab.restart();
        assert.equal((await lab.status()).pid, lab.daemon.pid);
      }
      const guest = lab.guest('traffic', 'vale0:a');
      await guest.line(/^running/);
    },
    ['--vm', 'fw=vale0:fw'],
  ));
