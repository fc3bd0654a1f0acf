// netmap's utils/tests 001-003 and 009-011, written afresh: who may open and attach what.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withLab } from './functional.ts';

for (const [number, what, name, persistent] of [
  ['001', 'an ephemeral VALE port', 'vale0:v0', false],
  ['002', 'a persistent VALE port', 'vale0:v0', true],
  ['003', 'a pipe', 'netmap:pipeA{1', false],
] as const) {
  test(`${number}: ${what} opened exclusively cannot be opened again`, () =>
    withLab(async (lab, ctl) => {
      if (persistent) {
        await ctl.create('v0');
        await ctl.attach('vale0:v0');
      }
      const port = await lab.open(`${name}/x`);
      await assert.rejects(lab.open(name), { code: 'EBUSY' });
      await assert.rejects(lab.open(`${name}/x`), { code: 'EBUSY' });
      await lab.close(port);
    }));
}

test('009: a persistent port is destroyed only when it is attached to nothing', () =>
  withLab(async (_lab, ctl) => {
    await ctl.create('v0');
    await ctl.destroy('v0');
    await ctl.create('v0');
    for (const name of ['vale0A:v0', 'vale0B:v0']) {
      await ctl.attach(name);
      await assert.rejects(ctl.destroy('v0'), { code: 'EBUSY' });
      await ctl.detach(name);
    }
    await ctl.destroy('v0');
    await assert.rejects(ctl.destroy('v0'), { code: 'ENXIO' });
  }));

// netmap lets one interface be attached to several switches; here a port is on one switch at a time (docs/vale.md).
test('010: a persistent port cannot be attached twice, to another switch after it was detached', () =>
  withLab(async (_lab, ctl) => {
    await ctl.create('v0');
    await ctl.attach('vale0A:v0');
    await assert.rejects(ctl.attach('vale0A:v0'), { code: 'EBUSY' });
    await assert.rejects(ctl.attach('vale0B:v0'), { code: 'EBUSY' });
    await ctl.detach('vale0A:v0');
    await ctl.attach('vale0B:v0');
  }));

test('011: two persistent ports cannot have the same name, attached or not', () =>
  withLab(async (_lab, ctl) => {
    await ctl.create('v0');
    await assert.rejects(ctl.create('v0'), { code: 'EEXIST' });
    await ctl.attach('vale0A:v0');
    await assert.rejects(ctl.create('v0'), { code: 'EEXIST' });
    await ctl.detach('vale0A:v0');
    await assert.rejects(ctl.create('v0'), { code: 'EEXIST' });
  }));
