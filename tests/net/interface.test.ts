/** The life of an interface: ptnet up, ptnet ifconfig, and every way in which it ends. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { listDaemon } from '../../src/api/index.ts';
import { until } from '../e2e/ptnet.ts';
import { type Host, Lab, netSkip } from './lab.ts';

const sender = fileURLToPath(new URL('frame-sender.js', import.meta.url));
const skip = netSkip('ping', 'tcpdump');

describe('ptnet up and ptnet ifconfig', { skip }, () => {
  let lab: Lab;
  let a: Host;
  let b: Host;
  before(async () => {
    lab = await Lab.start();
    a = await lab.host('vale0:a', 'inet', '10.78.0.1/24', 'ether', '02:00:00:00:00:aa', '-lro');
    b = await lab.host('vale0:b', '--name', 'lan7', 'inet', '10.78.0.2/24');
  });
  after(() => lab.close());

  const ifconfig = async (host: Host, ...words: string[]): Promise<string> => {
    const { status, stdout, stderr } = await lab.ptnet(['ifconfig', ...words], host);
    assert.equal(status, 0, stderr);
    return stdout;
  };
  const ping = (...args: string[]): Promise<boolean> => a.pings('10.78.0.2', ...args);
  const silent = (...args: string[]): Promise<boolean> => a.silent('10.78.0.2', ...args);

  it('ifconfig shows what the interface is, in its own namespace only', async () => {
    assert.ok(await ping());
    const text = await ifconfig(a);
    assert.match(text, /^ptnet0: flags=1043<UP,BROADCAST,RUNNING,MULTICAST> mtu 1500$/m);
    assert.match(text, /options=<RXCSUM,RXCSUM_IPV6,TXCSUM,TXCSUM_IPV6,TSO4,TSO6,VLAN_MTU,JUMBO_MTU>/);
    assert.match(text, /ether 02:00:00:00:00:aa\n\tinet 10\.78\.0\.1 netmask 255\.255\.255\.0/);
    assert.match(text, /port vale0:a, pid \d+, VirtIO header 12 bytes, 1 queue\n/);
    assert.match(text, /RX packets [1-9]\d* bytes [1-9]\d* errors 0 dropped 0/);
    assert.match(text, /TX packets [1-9]/);
    assert.ok(!text.includes('lan7'));
    assert.match(await ifconfig(b), /^lan7: .*\n.*LRO/);
  });

  it('ifconfig: a record of an interface that is no more, of a process that another one is by now, hides no other', async () => {
    const own = JSON.parse(readFileSync(join(lab.runDir, 'interfaces', `${a.process.pid}.json`), 'utf8')) as object;
    const left = join(lab.runDir, 'interfaces', 'left.json');
    writeFileSync(left, JSON.stringify({ ...own, pid: process.pid, name: 'gone0' }));
    const text = await ifconfig(a);
    assert.match(text, /^ptnet0: /m);
    assert.doesNotMatch(text, /gone0/);
    rmSync(left);
  });

  it('down, up, promisc, txcsum and tso are changed while it runs', async () => {
    await ifconfig(b, 'lan7', 'down');
    assert.ok(await silent());
    assert.match(
      await ifconfig(b, 'lan7'),
      /flags=1002<BROADCAST,MULTICAST>[^]*inet 10\.78\.0\.2 netmask 255\.255\.255\.0/,
    );
    await ifconfig(b, 'lan7', 'up', 'promisc', '-tso');
    assert.ok(await ping());
    const text = await ifconfig(b, 'lan7');
    assert.match(text, /PROMISC/);
    assert.ok(!text.includes('TSO4'));
    await ifconfig(b, 'lan7', '-promisc', 'tso', '-txcsum');
    assert.ok(!/PROMISC|TXCSUM|TSO/.test(await ifconfig(b, 'lan7')));
    await ifconfig(b, 'lan7', 'txcsum', 'tso');
    assert.match(await ifconfig(b, 'lan7'), /TXCSUM.*TSO4/);
    assert.ok(await ping('-s', '30000'));
  });

  it('MTU to 9000: frames of 9014 bytes pass unfragmented', async () => {
    assert.ok(await silent('-M', 'do', '-s', '1473'));
    await ifconfig(a, 'ptnet0', 'mtu', '9000');
    await ifconfig(b, 'lan7', 'mtu', '9000');
    assert.ok(await ping('-M', 'do', '-s', '8972'));
    assert.ok(await silent('-M', 'do', '-s', '8973'));
    await ifconfig(a, 'ptnet0', 'mtu', '1500');
    await ifconfig(b, 'lan7', 'mtu', '1500');
  });

  it('a VLAN frame of 1518 bytes arrives with its tag', async () => {
    const dump = b.spawn('tcpdump', ['-i', 'lan7', '-e', '-n', '-c1', '-xx', 'vlan', '5']);
    let text = '';
    dump.stdout!.on('data', (t: Buffer) => (text += t.toString()));
    await new Promise<void>((resolve) => {
      dump.stderr!.on('data', (t: Buffer) => t.includes('listening') && resolve());
    });
    const ended = once(dump, 'close');
    const frame = `ffffffffffff0200000000aa81000005${'88b5'}${'7e'.repeat(1500)}`;
    assert.equal((await a.run(process.execPath, [sender, 'ptnet0', frame])).status, 0);
    await ended;
    assert.match(text, /vlan 5, .*0x88b5|length 1518: vlan 5/);
    assert.match(text, /length 1518/);
  });

  it('its Ethernet and IP addresses are changed while it runs', async () => {
    const c = await lab.host('vale0:c', 'inet', '10.78.0.5/24');
    await ifconfig(c, 'ptnet0', 'ether', '02:00:00:00:00:cc', 'inet', '10.78.0.3/24', 'inet6', 'fd78::3/64');
    const text = await ifconfig(c);
    assert.match(text, /ether 02:00:00:00:00:cc/);
    assert.match(text, /inet 10\.78\.0\.3 netmask/);
    assert.match(text, /inet6 fd78::3 prefixlen 64/);
    assert.ok(await a.pings('10.78.0.3'));
    await c.stop();
  });

  it('each pair of rings is a queue, and flows use all of them', async () => {
    const c = await lab.host('vale0:c', '--rings', '2', 'inet', '10.78.0.4/24');
    assert.match(await ifconfig(c), /2 queues/);
    assert.ok(await c.pings('10.78.0.2'));
    // 64 flows: that all of them hash to one queue happens once in 2^63 runs.
    const flows = `const s = require('dgram').createSocket('udp4');
      for (let left = 64; left > 0; left--) s.send('x', 8 + left, '10.78.0.2', () => left === 1 && s.close());`;
    assert.equal((await c.run(process.execPath, ['-e', flows])).status, 0);
    const packets = async (): Promise<number[]> => {
      const { domains } = await listDaemon(lab.runDir);
      const port = domains.flatMap((d) => d.ports).find((p) => p.name === 'vale0:c')!;
      return port.txRings.map((ring) => ring.packets);
    };
    assert.equal((await packets()).length, 2);
    await until('both queues have sent', async () => (await packets()).every((n) => n > 1));
    await c.stop();
  });

  it('wrong words, names and interfaces are refused with a reason', async () => {
    const refused = async (args: string[], message: RegExp, host?: Host): Promise<void> => {
      const { status, stderr } = await lab.ptnet(args, host);
      assert.notEqual(status, 0);
      assert.match(stderr, message);
    };
    await refused(['ifconfig', 'lan7', 'mtu', '9001'], /68 to 9000/, b);
    await refused(['ifconfig', 'eth9', 'up'], /no "ptnet up" has an interface eth9/, b);
    await refused(['ifconfig', 'lan7', '-lro'], /chosen when the interface is made/, b);
    await refused(['up', 'vale0:c', '--name', 'lan7'], /lan7/, b);
    await refused(['up', 'vale0:c', '--name', 'much-too-long-a-name'], /no name of an interface/, b);
    await refused(['up', 'vale0:c', '--slots', '64'], /more than 64 slots/, b);
    await refused(['up', 'vale0:c', '--buf-size', '960'], /needs buffers of 1024 bytes, these have 960/, b);
    await refused(['up', 'vale0:c', '--vnet-hdr', 'no'], /--vnet-hdr no: must be 0 or 1/, b);
    await refused(['up', 'vale0:c', '--loader-conf', '/nonexistent'], /nonexistent/, b);
  });

  it('small buffers, without header: frames of up to 64 slots pass, longer ones are dropped', async () => {
    const small = ['--buf-size', '64', '--slots', '2048', '--vnet-hdr', '0', 'mtu', '9000'];
    const c = await lab.host('vale0:c', 'inet', '10.78.1.1/24', ...small);
    const d = await lab.host('vale0:d', 'inet', '10.78.1.2/24', ...small);
    assert.ok(await c.pings('10.78.1.2', '-s', '4000'));
    assert.ok(await c.silent('10.78.1.2', '-s', '8000'));
    assert.ok(await c.pings('10.78.1.2'));
    await Promise.all([c.stop(), d.stop()]);
  });

  it('the tunable in loader.conf turns the header off, the environment on again, the flag off', async () => {
    const file = join(lab.runDir, 'loader.conf');
    writeFileSync(file, 'if_ptnet_load="YES"\ndev.netmap.ptnet_vnet_hdr=0\n');
    const off = await lab.host('vale0:c', '--loader-conf', file);
    const text = await ifconfig(off);
    assert.match(text, /VirtIO header 0 bytes/);
    assert.match(text, /options=<VLAN_MTU,JUMBO_MTU>/);
    await off.stop();
    process.env['PTNET_VNET_HDR'] = '1';
    try {
      const on = await lab.host('vale0:c', '--loader-conf', file);
      assert.match(await ifconfig(on), /VirtIO header 12 bytes/);
      await on.stop();
      const flag = await lab.host('vale0:c', '--loader-conf', file, '--vnet-hdr', '0');
      assert.match(await ifconfig(flag), /VirtIO header 0 bytes/);
      await flag.stop();
    } finally {
      delete process.env['PTNET_VNET_HDR'];
    }
  });

  it('the interface goes with its process, killed or not, and the port with it', async () => {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const c = await lab.host('vale0:c');
      // Holds the namespace.
      const holder = await c.serve('sh', ['-c', 'echo ready; exec sleep 600']);
      const devices = async (): Promise<string> => {
        const namespace = `--net=/proc/${holder.pid}/ns/net`;
        return (await a.run('nsenter', [namespace, 'cat', '/proc/net/dev'])).stdout;
      };
      const list = async (): Promise<string> => (await lab.ptnet(['list'])).stdout;
      assert.match(await devices(), /ptnet0/);
      assert.match(await list(), /vale0:c/);
      c.process.kill(signal);
      const [code] = (await once(c.process, 'exit')) as [number | null];
      assert.equal(code, signal === 'SIGTERM' ? 0 : null);
      assert.ok(!(await devices()).includes('ptnet0'), signal);
      await until('the port is gone', async () => !(await list()).includes('vale0:c'));
      holder.kill('SIGKILL');
    }
  });

  it('without its daemon it ends with an error', async () => {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const other = await Lab.start();
      const c = await other.host('vale0:c');
      let stderr = '';
      c.process.stderr!.on('data', (t: string) => (stderr += t));
      const exit = once(c.process, 'close');
      await other.stopDaemon(signal);
      const [code] = (await exit) as [number | null];
      await other.close();
      assert.equal(code, 1);
      assert.match(stderr, /^ptnet: the device of interface ptnet0 is gone/);
    }
  });
});
