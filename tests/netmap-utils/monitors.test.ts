// netmap's utils/tests 012-020 and 025-027, written afresh: monitors of each kind on each kind of port.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NetmapPort } from '../../src/api/index.ts';
import { type Ctl, type Lab, receive, receiveNothing, send, withLab } from './functional.ts';

const FRAMES = { len: 150, fill: 'd', num: 4 };
const LONG = { len: 5000, fill: 'p', num: 2 };

/** The monitored port, one that it exchanges frames with, and a monitor. Zero-copy monitors need a region with room. */
type Ports = (
  lab: Lab,
  ctl: Ctl,
  flags: string,
) => Promise<[monitored: NetmapPort, other: NetmapPort, monitor: NetmapPort]>;

const ephemeral: Ports = async (lab, _ctl, flags) => {
  const monitored = await lab.open('vale0:v0@lab');
  const monitor = await lab.open(`vale0:v0/${flags}`);
  return [monitored, await lab.open('vale0:v1'), monitor];
};
const persistent: Ports = async (lab, ctl, flags) => {
  await ctl.create('v0', 'lab');
  await ctl.attach('vale0:v0');
  const monitored = await lab.open('vale0:v0');
  const monitor = await lab.open(`netmap:v0/${flags}`);
  return [monitored, await lab.open('vale0:v1'), monitor];
};
const pipe: Ports = async (lab, _ctl, flags) => {
  const monitored = await lab.open('netmap:pipe{1@lab');
  const monitor = await lab.open(`netmap:pipe{1/${flags}`);
  return [monitored, await lab.open('netmap:pipe}1'), monitor];
};

for (const [number, what, ports] of [
  ['012', 'ephemeral VALE port', ephemeral],
  ['013', 'persistent VALE port', persistent],
  ['014', 'pipe', pipe],
] as const) {
  test(`${number}: a receive copy monitor of a ${what} gets frames before the port has read them`, () =>
    withLab(async (lab, ctl) => {
      const [monitored, other, monitor] = await ports(lab, ctl, 'r');
      for (const frames of [FRAMES, LONG]) {
        assert.ok(send(other, frames));
        receive(monitor, frames);
        receive(monitored, frames);
        // What the port sends is not for it.
        assert.ok(send(monitored, frames));
        receive(other, frames);
        receiveNothing(monitor);
      }
    }));
}

for (const [number, what, ports] of [
  ['015', 'ephemeral VALE port', ephemeral],
  ['016', 'persistent VALE port', persistent],
  ['017', 'pipe', pipe],
] as const) {
  test(`${number}: a zero-copy monitor of a ${what} gets received frames when the port has read them`, () =>
    withLab(async (lab, ctl) => {
      const [monitored, other, monitor] = await ports(lab, ctl, 'z');
      for (const frames of [FRAMES, LONG]) {
        assert.ok(send(other, frames));
        receiveNothing(monitor);
        const held = monitored.rxRings[0]!.bufIdx(monitored.rxRings[0]!.head);
        receive(monitored, frames);
        assert.equal(monitor.poll(1, 5000), 1);
        assert.equal(monitor.rxRings[0]!.bufIdx(monitor.rxRings[0]!.head), held, 'without a copy');
        receive(monitor, frames);
      }
    }));
}

for (const [number, what, ports] of [
  ['018', 'ephemeral VALE port', ephemeral],
  ['019', 'persistent VALE port', persistent],
  ['020', 'pipe', pipe],
] as const) {
  test(`${number}: a send copy monitor of a ${what} gets frames before the other side has read them`, () =>
    withLab(async (lab, ctl) => {
      const [monitored, other, monitor] = await ports(lab, ctl, 't');
      for (const frames of [FRAMES, LONG]) {
        assert.ok(send(monitored, frames));
        receive(monitor, frames, 'tx');
        receive(other, frames);
        assert.ok(send(other, frames));
        receive(monitored, frames);
        receiveNothing(monitor);
      }
    }));
}

for (const [number, what, ports] of [
  ['025', 'ephemeral VALE port', ephemeral],
  ['026', 'persistent VALE port', persistent],
] as const) {
  test(`${number}: a zero-copy monitor of a ${what} gets sent frames before the other side has read them`, () =>
    withLab(async (lab, ctl) => {
      const [monitored, other, monitor] = await ports(lab, ctl, 'z');
      for (const frames of [FRAMES, LONG]) {
        const sent = monitored.txRings[0]!.bufIdx(monitored.txRings[0]!.head);
        assert.ok(send(monitored, frames));
        assert.equal(monitor.poll(1, 5000), 1);
        assert.equal(monitor.rxRings[0]!.bufIdx(monitor.rxRings[0]!.head), sent, 'without a copy');
        receive(monitor, frames, 'tx');
        receive(other, frames);
      }
    }));
}

test('027: a zero-copy monitor of a pipe gets sent frames when the other side has read them', () =>
  withLab(async (lab, ctl) => {
    const [monitored, other, monitor] = await pipe(lab, ctl, 'z');
    for (const frames of [FRAMES, LONG]) {
      assert.ok(send(monitored, frames));
      receiveNothing(monitor);
      receive(other, frames);
      receive(monitor, frames, 'tx');
    }
  }));
