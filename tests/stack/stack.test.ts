/**
 * Two Linux network stacks connected through a VALE switch, with and without the VirtIO header, and through a pipe: everything that a
 * stack nobody here wrote sends arrives, and what is on the wire is right.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { type Host, Lab, netSkip, type Result, stopped } from '../net/lab.ts';

const long = process.env['PTNET_LONG'] === '1';
const peer = fileURLToPath(new URL('http-peer.js', import.meta.url));
const skip = netSkip('iperf3', 'ping', 'tcpdump', 'tshark');
/** How much iperf3 sends in each way. */
const AMOUNT = long ? ['-t', '1'] : ['-n', '20M'];
const FILE = long ? 2 ** 30 : 32 * 2 ** 20;

const inet = (i: number): string[] => ['inet', `10.77.0.${i}/24`, 'inet6', `fd77::${i}/64`];
const TARGETS = [
  ['IPv4', '10.77.0.2', 'http://10.77.0.2:8080'],
  ['IPv6', 'fd77::2', 'http://[fd77::2]:8080'],
] as const;

/**
 * One run of iperf3, with a server of its own, as one that has just served says that it is busy. It is gone when this
 * resolves, so that the next one gets its port.
 */
async function iperf3(server: Host, client: Host, address: string, args: readonly string[]): Promise<Result> {
  const listening = await server.serve('iperf3', ['-s', '-1', '--forceflush']);
  try {
    const result = await client.run('iperf3', ['-c', address, ...args]);
    assert.equal(result.status, 0, `iperf3 ${args.join(' ')}: ${result.stdout}${result.stderr}`);
    return result;
  } finally {
    await stopped(listening);
  }
}

/** What the file over HTTP has to hash to. */
let hash: string | undefined;
function expectedHash(): string {
  hash ??= spawnSync(process.execPath, [peer, 'hash', String(FILE)], { encoding: 'utf8' }).stdout.trim();
  return hash;
}

/** Sizes around what fits into a frame, a buffer, a segment. */
const PING_SIZES = [64, 1400, 1452, 1453, 1472, 1473, 2000, 2048, 4096, 8972, 30_001, 65_000];

interface Case {
  readonly name: string;
  /** Ports of the two hosts (default: of one switch), and the words of their ptnet up. */
  readonly ports?: readonly [string, string];
  readonly a: readonly string[];
  readonly b: readonly string[];
  /** Hosts whose stack gets complete frames, so that what arrives there can be checked. */
  readonly check: readonly ('a' | 'b')[];
}

const off = ['--vnet-hdr', '0'];
const cases: readonly Case[] = [
  { name: 'header on / on', a: [], b: [], check: [] },
  { name: 'header on / off', a: [], b: off, check: ['b'] },
  { name: 'header off / on', a: off, b: [], check: ['a'] },
  { name: 'header off / off', a: off, b: off, check: ['a', 'b'] },
  { name: 'header on / on, nothing received in large', a: ['-lro'], b: ['-rxcsum', '-lro'], check: ['b'] },
  { name: 'header on / on, two queues', a: ['--rings', '2'], b: ['--rings', '2'], check: [] },
  { name: 'no header, through a pipe', ports: ['netmap:x{1', 'netmap:x}1'], a: [], b: [], check: ['a', 'b'] },
  { name: 'header on / off, MTU 9000', a: ['mtu', '9000'], b: ['mtu', '9000', '--vnet-hdr', '0'], check: ['b'] },
];

/**
 * Frames that must not be. Linux stores a checksum of 0 as 0xffff, of TCP too, which is the same number (RFC 1624) and
 * correct for every receiver; tshark calls it bad for TCP.
 */
const WRONG = [
  ...['ip', 'udp', 'icmp', 'icmpv6'].map((p) => `${p}.checksum.status == 0`),
  '(tcp.checksum.status == 0 and not (tcp.checksum == 0xffff and tcp.checksum_calculated == 0))',
  '_ws.malformed or _ws.short or ip.len > frame.len',
].join(' or ');

/** What tshark prints of the frames of a capture that a filter takes; all checksums are verified. */
function tshark(file: string, filter: string, ...output: string[]): string {
  const checked = ['ip', 'tcp', 'udp'].flatMap((p) => ['-o', `${p}.check_checksum:TRUE`]);
  // Payload is payload: a port that is some protocol's would make it malformed.
  const plain = ['tcp', 'udp'].flatMap((p) => ['-d', `${p}.port==5201,data`]);
  const args = ['-r', file, ...checked, ...plain, '-Y', filter, ...output];
  const { status, stdout, stderr } = spawnSync('tshark', args, { encoding: 'utf8', maxBuffer: 2 ** 26 });
  assert.equal(status, 0, stderr);
  return stdout;
}

for (const { name, ports = ['vale0:a', 'vale0:b'], a, b, check } of cases) {
  describe(`two network stacks, ${name}`, { skip }, () => {
    let lab: Lab;
    const hosts: { a?: Host; b?: Host } = {};
    let captures: string;

    before(async () => {
      captures = mkdtempSync(join(tmpdir(), 'ptnet-pcap-'));
      lab = await Lab.start();
      [hosts.a, hosts.b] = await Promise.all([
        lab.host(ports[0], ...inet(1), ...a),
        lab.host(ports[1], ...inet(2), ...b),
      ]);
      // IPv6 addresses are looked for on the net before they can be used.
      for (let i = 0; i < 20; i++) {
        const { status } = await hosts.a!.run('ping', ['-c1', '-W1', 'fd77::2']);
        if (status === 0) return;
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
      assert.fail('IPv6 does not come up');
    });
    after(async () => {
      await lab.close();
      rmSync(captures, { recursive: true, force: true });
    });

    for (const [family, address, url] of TARGETS) {
      it(`${family}: ping, 64 to 65,000 bytes`, async () => {
        for (const size of PING_SIZES) {
          const { status, stdout } = await hosts.a!.run('ping', ['-c2', '-i0.01', '-W2', `-s${size}`, address]);
          assert.equal(status, 0, `${size} bytes: ${stdout}`);
        }
      });

      it(`${family}: iperf3, both directions and both at once, nothing malformed dropped`, async () => {
        for (const way of [[], ['-R'], ['--bidir'], ['-P4']]) {
          const { stdout } = await iperf3(hosts.b!, hosts.a!, address, [...AMOUNT, '-J', ...way]);
          const { end } = JSON.parse(stdout) as { end: { sum_received: { bytes: number } } };
          assert.ok(end.sum_received.bytes > 2 ** 20, `${way.join(' ')}: ${end.sum_received.bytes} bytes`);
        }
        for (const length of ['64', '1400', '9000']) {
          await iperf3(hosts.b!, hosts.a!, address, ['-u', '-b50M', '-l', length, '-n', '500K']);
        }
        const { stdout } = await lab.ptnet(['list', '--json']);
        const rings = (
          JSON.parse(stdout) as {
            domains: { ports: { txRings: { drops: object }[]; rxRings: { drops: object }[] }[] }[];
          }
        ).domains
          .flatMap((d) => d.ports)
          .flatMap((p) => [...p.txRings, ...p.rxRings]);
        const reasons = new Set(rings.flatMap((r) => Object.keys(r.drops)));
        for (const reason of ['bad', 'offload', 'dst']) assert.ok(!reasons.has(reason), reason);
      });

      it(`${family}: a file over HTTP arrives with its hash`, async () => {
        const server = await hosts.b!.serve(process.execPath, [peer, 'server']);
        try {
          const { stdout, stderr } = await hosts.a!.run(process.execPath, [peer, 'client', `${url}/${FILE}`], 600);
          assert.equal(stdout.trim(), expectedHash(), stderr);
        } finally {
          await stopped(server);
        }
      });
    }

    for (const receiver of check) {
      it(`what ${receiver} receives has right checksums and lengths (tshark)`, async () => {
        const file = join(captures, `${receiver}.pcap`);
        const host = hosts[receiver]!;
        const [client, server] = receiver === 'a' ? [hosts.b!, hosts.a!] : [hosts.a!, hosts.b!];
        const to = receiver === 'a' ? 1 : 2;
        const dump = host.spawn('tcpdump', ['-i', 'ptnet0', '-p', '-Q', 'in', '-B', '65536', '-w', file]);
        try {
          await new Promise<void>((resolve) => {
            dump.stderr!.on('data', (text: Buffer) => text.includes('listening') && resolve());
          });
          for (const address of [`10.77.0.${to}`, `fd77::${to}`]) {
            await client.run('ping', ['-c2', '-i0.01', '-s3000', address]);
            for (const args of [
              ['-n', '3M'],
              ['-n', '3M', '-M', '777'],
              ['-u', '-b50M', '-n', '1M', '-l', '3000'],
            ]) {
              await iperf3(server, client, address, args);
            }
          }
        } finally {
          // It writes what it has.
          await stopped(dump, 'SIGINT');
        }
        for (const family of ['ip', 'ipv6']) {
          const good = tshark(file, `${family} and tcp.checksum.status == 1`, '-T', 'fields', '-e', 'frame.number');
          const count = good.split('\n').length;
          assert.ok(count > 1000, `${family}: ${count} good frames captured`);
        }
        const wrong = tshark(file, WRONG, '-V', '-x');
        assert.equal(wrong.slice(0, 20_000), '');
      });
    }
  });
}
