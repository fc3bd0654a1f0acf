/** Offloads that a port switched off are on again however the daemon ended, and nobody else's are touched (docs/nics.md). */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { type NetmapPort, openPort } from '../../src/api/index.ts';
import { NicLab, nicSkip } from './nic-lab.ts';

const ON = { gro: true, rxvlan: true };
const OFF = { gro: false, rxvlan: false };

describe('offloads of an interface that is a port', { skip: nicSkip() }, () => {
  let lab: NicLab;
  let record: string;
  beforeEach(async () => {
    lab = new NicLab();
    record = join(lab.runDir, 'offloads.json');
    lab.here.ethtool('-K', 'veth0', 'gro', 'on', 'rxvlan', 'on');
    await lab.start();
  });
  afterEach(() => lab.close());

  function offloads(): { gro: boolean; rxvlan: boolean } {
    const text = lab.here.ethtool('-k', 'veth0');
    const on = (feature: string): boolean => new RegExp(`^${feature}: on`, 'm').test(text);
    return { gro: on('generic-receive-offload'), rxvlan: on('rx-vlan-offload') };
  }

  /** Opens the port in the way that needs both off: with packet sockets. */
  async function open(): Promise<NetmapPort> {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, bufSize: 4096 });
    assert.deepEqual(offloads(), OFF);
    return port;
  }

  async function killed(): Promise<void> {
    const port = await open();
    await lab.end('SIGKILL');
    await port.close();
    assert.deepEqual(offloads(), OFF);
    assert.ok(existsSync(record));
  }

  it('are on again when the port is closed, and when the daemon ends in order', async () => {
    assert.deepEqual(offloads(), ON);
    const first = await open();
    await first.close();
    await lab.givenBack();
    assert.deepEqual(offloads(), ON);
    assert.ok(!existsSync(record));
    const port = await open();
    await lab.end();
    await port.close();
    assert.deepEqual(offloads(), ON);
    assert.ok(!existsSync(record));
  });

  it('are on again when the next daemon starts, if the last one was killed', async () => {
    await killed();
    await lab.start();
    assert.deepEqual(offloads(), ON);
    for (const was of ['rxvlan', 'gro']) await lab.logs(`interface veth0: ${was} switched on again`);
    assert.ok(!existsSync(record));
  });

  it('that were off before, or belong to another interface of that name, stay off', async () => {
    lab.here.ethtool('-K', 'veth0', 'gro', 'off');
    await killed();
    await lab.start();
    assert.deepEqual(offloads(), { gro: false, rxvlan: true });
    await killed();
    lab.here.ip('link', 'del', 'veth0');
    lab.wire();
    lab.here.ethtool('-K', 'veth0', 'gro', 'off', 'rxvlan', 'off');
    await lab.start();
    await lab.logs('interface veth0, whose rxvlan had been on, is gone or another one now');
    assert.deepEqual(offloads(), OFF);
    assert.ok(!existsSync(record));
  });

  it('of another network namespace are left alone, until a daemon starts there', async () => {
    await killed();
    const before = readFileSync(record, 'utf8');
    await lab.start({}, lab.there);
    const port = await openPort('netmap:veth1', { runDir: lab.runDir });
    await lab.end();
    await port.close();
    assert.deepEqual(offloads(), OFF);
    assert.equal(readFileSync(record, 'utf8'), before);
    await lab.start();
    assert.deepEqual(offloads(), ON);
    assert.ok(!existsSync(record));
  });

  it('a record that is none is ignored with a warning', async () => {
    await killed();
    const [entry] = JSON.parse(readFileSync(record, 'utf8')) as [object];
    writeFileSync(record, JSON.stringify([{ ...entry, off: ['gro', 'tso'] }]));
    await lab.start();
    await lab.logs('is ignored, as it is no record of offloads: \\"off\\" of entry 0');
    assert.deepEqual(offloads(), OFF);
  });

  it('a record that cannot be written costs a warning, not the port', async () => {
    mkdirSync(join(dirname(record), 'offloads.json', 'in the way'), { recursive: true });
    const port = await open();
    await lab.logs('would stay off if this daemon were killed');
    await port.close();
    await lab.givenBack();
    assert.deepEqual(offloads(), ON);
  });
});
