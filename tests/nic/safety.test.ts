/** An interface that the host's default route needs is not taken, unless somebody said that it may be (docs/nics.md). */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { openPort } from '../../src/api/index.ts';
import { NicLab, nicSkip } from './nic-lab.ts';

describe('an interface of the default route', { skip: nicSkip('ping') }, () => {
  let lab: NicLab;
  beforeEach(async () => {
    lab = new NicLab();
    lab.addresses();
    await lab.start();
  });
  afterEach(() => lab.close());

  const open = (name: string) => openPort(name, { runDir: lab.runDir });

  async function isRefused(why: RegExp): Promise<void> {
    await assert.rejects(open('netmap:veth0'), why);
    await assert.rejects(open('netmap:veth0^'), why);
    await assert.rejects(lab.valeCtl('a', 'vale0:veth0'), why);
    assert.deepEqual(await lab.ports(), []);
    await lab.untouched();
  }

  it('is refused, with what to do about it; the host keeps it', async () => {
    lab.here.ip('route', 'add', 'default', 'via', '10.77.0.2');
    await isRefused(/interface veth0: the host's default route goes through it.*interfaces\.mayCutOff/);
    assert.ok(await lab.there.pings('10.77.0.1'));
    lab.here.ip('route', 'del', 'default');
    await (await open('netmap:veth0')).close();
  });

  it('is refused for the sake of IPv6, of another table, of several ways out', async () => {
    spawnSync('ip', ['netns', 'exec', lab.here.name, 'sysctl', '-qw', 'net.ipv6.conf.veth0.disable_ipv6=0']);
    lab.here.ip('-6', 'route', 'add', 'default', 'dev', 'veth0');
    await isRefused(/default route goes through it/);
    lab.here.ip('-6', 'route', 'del', 'default', 'dev', 'veth0');
    lab.here.ip('route', 'add', 'default', 'via', '10.77.0.2', 'table', '77');
    await isRefused(/default route goes through it/);
    lab.here.ip('route', 'flush', 'table', '77');
    const ways = ['nexthop', 'dev', 'lo', 'nexthop', 'via', '10.77.0.2', 'dev', 'veth0'];
    lab.here.ip('route', 'add', 'default', ...ways);
    await isRefused(/default route goes through it/);
  });

  it('is refused where it is a port of the bridge that the route goes through', async () => {
    lab.bridge();
    lab.here.ip('addr', 'add', '10.78.0.1/24', 'dev', 'br0');
    lab.here.ip('route', 'add', 'default', 'via', '10.78.0.2');
    await isRefused(/goes through it \(by way of br0\)/);
  });

  it('goes to a switch together with the host', async () => {
    lab.here.ip('route', 'add', 'default', 'via', '10.77.0.2');
    await lab.valeCtl('h', 'vale0:veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    await lab.valeCtl('d', 'vale0:veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('is taken if the configuration says so; a TAP interface in any case, whose other end nobody else has', async () => {
    await lab.end();
    await lab.start({ interfaces: { mayCutOff: ['veth0'] } });
    lab.here.ip('route', 'add', 'default', 'via', '10.77.0.2');
    await (await open('netmap:veth0')).close();
    lab.here.ip('route', 'del', 'default');
    lab.here.ip('tuntap', 'add', 'tap9', 'mode', 'tap');
    lab.here.ip('link', 'set', 'tap9', 'up');
    lab.here.ip('route', 'add', 'default', 'dev', 'tap9');
    await (await open('netmap:tap9')).close();
  });
});
