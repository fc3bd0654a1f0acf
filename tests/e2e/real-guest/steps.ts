// The steps of e2e/real-guest. Each one needs only a lab; it throws if the daemon or the driver did wrong, else returns
// what it measured.

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { netmap_if, netmap_ring, netmap_slot } from '../../../src/abi/index.ts';
import { check, equal } from './checks.ts';
import type { Guest } from './guest.ts';
import { defaultSetup, type Lab, type Setup } from './lab.ts';
import { monitor, PACKETS, ping, pong, RATE, rx, TRANSFER_MS, tx, vmToVm } from './packets.ts';
import { checkPing, tcp } from './tcp.ts';

export interface Step {
  readonly name: string;
  readonly what: string;
  readonly run: (lab: Lab) => Promise<string>;
}

/** Steps that share a daemon and machines. */
export interface Part {
  readonly setup: Setup;
  readonly steps: readonly Step[];
}

const PAUSE_MS = 30_000;
const STOPPED_MS = 10_000;

// ---- Attaching -------------------------------------------------------------------------------------------------

async function attach(lab: Lab): Promise<string> {
  const a = await lab.vm('a');
  equal(a.interfaces.length, 1, 'the number of ptnet interfaces');
  await a.up('10.7.0.1/24');
  const port = await lab.port('vale0:a');
  check(port.attached && port.running, 'the rings do not run once the interface is up');
  return `${a.interface()}, header of ${port.vnetHdrLen} bytes`;
}

// ---- A guest's life --------------------------------------------------------------------------------------------

async function reload(lab: Lab): Promise<string> {
  const [a] = await lab.pair();
  for (let i = 0; i < 3; i++) {
    await a.unload();
    equal((await lab.port('vale0:a')).running, false, 'running, after the driver was unloaded,');
    await a.load();
  }
  await lab.pair();
  await checkPing(a);
  return '3 times';
}

async function downUp(lab: Lab): Promise<string> {
  const [a] = await lab.pair();
  for (let i = 0; i < 3; i++) {
    await a.down();
    equal((await lab.port('vale0:a')).running, false, 'running, while the interface is down,');
    await a.up('10.7.0.1/24');
  }
  await checkPing(a);
  return '3 times';
}

async function reboot(lab: Lab): Promise<string> {
  const [a] = await lab.pair();
  a.machine.send('guest-reboot');
  await a.booted();
  await lab.pair();
  await checkPing(a);
  return '';
}

async function resetInTraffic(lab: Lab): Promise<string> {
  const [a] = await lab.pair();
  await startFlood(lab, a);
  await a.machine.reset();
  await a.booted();
  await lab.pair();
  await checkPing(a);
  return '';
}

async function killQemu(lab: Lab): Promise<string> {
  const [a] = await lab.pair();
  await startFlood(lab, a);
  await lab.drop('a');
  const [again] = await lab.pair();
  await checkPing(again);
  return '';
}

/** A machine that stands still while packets arrive: the others do not notice, and it goes on afterwards. */
async function pause(lab: Lab): Promise<string> {
  const [a, b] = await lab.pair();
  await startFlood(lab, b);
  await a.machine.qmp('stop');
  const before = await packets(lab, 'vale0:b');
  await sleep(PAUSE_MS);
  check((await packets(lab, 'vale0:b')) > before, 'the other machine stopped too');
  await a.machine.qmp('cont');
  await b.run('killall guest-pkt-gen || pkill guest-pkt-gen');
  await checkPing(a);
  return `${PAUSE_MS / 1000} s`;
}

/** The daemon stands still: so does what needs it, and then all goes on. */
async function daemonStopped(lab: Lab): Promise<string> {
  const [a] = await lab.pair();
  await startFlood(lab, a);
  lab.daemon.child.kill('SIGSTOP');
  await sleep(STOPPED_MS);
  lab.daemon.child.kill('SIGCONT');
  await a.run('killall guest-pkt-gen || pkill guest-pkt-gen');
  await checkPing(a);
  return `${STOPPED_MS / 1000} s`;
}

const packets = async (lab: Lab, port: string): Promise<number> =>
  (await lab.port(port)).txRings.reduce((sum, r) => sum + r.packets, 0);

/** Endless traffic from the guest at full speed, seen by the daemon. */
async function startFlood(lab: Lab, guest: Guest): Promise<void> {
  await guest.background(guest.pktGenCommand('-f tx'));
  const port = `vale0:${guest.name}`;
  const sent = (): Promise<number> => packets(lab, port);
  const before = await sent();
  await lab.until('packets flow', async () => (await sent()) > before + 10_000, 30_000);
}

// ---- Two ports: zero copy -------------------------------------------------------------------------------------------------

/** Buffers in the slots of a port's rings, read from the region itself. @param dir 1 = tx, 0 = rx, as `netmap_ring.dir` */
function buffers(region: Buffer, port: string, dir: number): number[] {
  const nifp = region.indexOf(`${port}\0`, 0, 'latin1');
  check(nifp >= 0, `the region has no netmap_if of ${port}`);
  const rings = region.readUInt32LE(nifp + netmap_if.fields.ni_tx_rings[0]);
  const rxRings = region.readUInt32LE(nifp + netmap_if.fields.ni_rx_rings[0]);
  const hostRings = region.readUInt32LE(nifp + netmap_if.fields.ni_host_tx_rings[0]);
  const first = dir === 1 ? 0 : rings + hostRings;
  return Array.from({ length: dir === 1 ? rings : rxRings }, (_, i) => {
    const ring = nifp + Number(region.readBigInt64LE(nifp + netmap_if.size + 8 * (first + i)));
    equal(region.readUInt16LE(ring + netmap_ring.fields.dir[0]), dir, `the direction of a ring of ${port}`);
    const slots = region.readUInt32LE(ring + netmap_ring.fields.num_slots[0]);
    return Array.from({ length: slots }, (_slot, s) =>
      region.readUInt32LE(ring + netmap_ring.size + s * netmap_slot.size),
    );
  }).flat();
}

/** Starts bridge in a guest and sends packets through it. Returns how many were sent, how many came, and what bridge said. */
async function throughBridge(lab: Lab, guest: Guest): Promise<{ sent: number; received: number; said: string }> {
  const bridging = await guest.background(
    `guest-bridge -w 0 -i netmap:${guest.interface(0)} -i netmap:${guest.interface(1)}`,
  );
  await sleep(3000);
  const receiver = await lab.pktGen('vale1:host', ['-f', 'rx']);
  const sender = await lab.pktGen('vale0:host', ['-f', 'tx', '-n', String(PACKETS), '-R', String(RATE)]);
  const { packets: sent } = await sender.result(TRANSFER_MS);
  await sleep(500);
  await receiver.end('SIGINT');
  const { packets: received } = await receiver.result(5_000);
  const said = await bridging.stop();
  check(received >= sent * 0.9, `${received} of ${sent} packets came through the bridge\n${said}`);
  return { sent, received, said };
}

/** A guest with two ports, both up, without the header: with it, netmap's bridge gets EIO, as it does not say that it accepts one. */
async function middlebox(lab: Lab, name: 'mid' | 'two'): Promise<Guest> {
  const guest = await lab.vm(name);
  await guest.load(false);
  equal(guest.interfaces.length, 2, 'the number of ptnet interfaces');
  await guest.up('', 0);
  await guest.up('', 1);
  return guest;
}

async function bridge(lab: Lab): Promise<string> {
  const mid = await middlebox(lab, 'mid');
  const { region } = await lab.port('vale0:mid');
  equal((await lab.port('vale1:mid')).region, region, 'the region of the other port');
  const file = lab.daemon.regionFile(region);
  const read = (): [Set<number>, Set<number>] => {
    const bytes = readFileSync(file);
    return [new Set(buffers(bytes, 'vale0:mid', 0)), new Set(buffers(bytes, 'vale1:mid', 1))];
  };
  const [rxBefore, txBefore] = read();
  const { sent, received } = await throughBridge(lab, mid);
  const [rxAfter, txAfter] = read();
  const moved = [...rxAfter].filter((b) => txBefore.has(b)).length;
  check(moved > 0, 'no buffer of the tx ring is in the rx ring: the bridge has copied');
  const all = (...sets: Set<number>[]): string =>
    [...new Set(sets.flatMap((s) => [...s]))].toSorted((p, q) => p - q).join();
  check(all(rxBefore, txBefore) === all(rxAfter, txAfter), 'a buffer was lost or doubled');
  return `${received} of ${sent} packets, ${moved} of ${rxAfter.size} buffers of the rx ring were the tx ring's`;
}

/** Two ports in two regions, so two memdevs: the driver has to find the right one for each. bridge then copies. */
async function twoRegions(lab: Lab): Promise<string> {
  const two = await middlebox(lab, 'two');
  const regions = [(await lab.port('vale0:two')).region, (await lab.port('vale1:two')).region];
  check(regions[0] !== regions[1], `both ports are in region ${regions[0]}`);
  const { sent, received } = await throughBridge(lab, two);
  return `${received} of ${sent} packets, from region ${regions.join(' to ')}`;
}

// ---- The end ---------------------------------------------------------------------------------------------------

async function clean(lab: Lab): Promise<string> {
  await lab.dropAll();
  const { atStart } = lab;
  let now = await lab.daemon.holdings();
  const isClean = async (): Promise<boolean> => {
    now = await lab.daemon.holdings();
    return JSON.stringify(now) === JSON.stringify(atStart);
  };
  await lab.until('the daemon has given everything back', isClean).catch(() => {
    throw new Error(`the daemon held ${JSON.stringify(atStart)} at the start, now ${JSON.stringify(now)}`);
  });
  return `${now.descriptors} descriptors, no guest memory, all buffers as at the start`;
}

const cleanStep: Step = { name: 'clean', what: 'all machines killed: the daemon gave everything back', run: clean };

// ---- All of them -----------------------------------------------------------------------------------------------

const main: Part = {
  setup: defaultSetup,
  steps: [
    { name: 'attach', what: 'the driver attaches, its rings run', run: attach },
    { name: 'tx', what: 'pkt-gen: guest to host', run: tx },
    { name: 'rx', what: 'pkt-gen: host to guest', run: rx },
    { name: 'ping', what: 'pkt-gen: the guest asks, the host answers', run: ping },
    { name: 'pong', what: 'pkt-gen: the host asks, the guest answers', run: pong },
    { name: 'vm-to-vm', what: 'pkt-gen: guest to guest', run: vmToVm },
    { name: 'tcp', what: 'ping and TCP between guests, header on', run: (lab) => tcp(lab, true, true) },
    { name: 'tcp-no-header', what: 'ping and TCP between guests, header off', run: (lab) => tcp(lab, false, false) },
    {
      name: 'tcp-mixed',
      what: 'ping and TCP between guests, header on in one only',
      run: (lab) => tcp(lab, true, false),
    },
    { name: 'bridge', what: 'bridge in a guest with two ports, without copying', run: bridge },
    { name: 'two-regions', what: 'two ports in two regions: two memdevs', run: twoRegions },
    { name: 'monitor', what: 'a guest that only watches what arrives at another guest', run: monitor },
    { name: 'reload', what: 'the driver is unloaded and loaded', run: reload },
    { name: 'down-up', what: 'the interface goes down and up', run: downUp },
    { name: 'reboot', what: 'reboot from inside', run: reboot },
    { name: 'reset', what: 'hard reset in traffic', run: resetInTraffic },
    { name: 'kill', what: 'kill -9 of QEMU in traffic, a new one on the same sockets', run: killQemu },
    { name: 'pause', what: 'a machine is paused in traffic', run: pause },
    { name: 'daemon-stopped', what: 'the daemon is stopped (SIGSTOP) in traffic, and goes on', run: daemonStopped },
    cleanStep,
  ],
};

const shape = (setup: Setup): string =>
  `${setup.machine}-${setup.cpus}cpu-bar${setup.bar64 ? 64 : 32}${setup.queuePairs === 1 ? '' : `-${setup.queuePairs}queues`}`;

/** The short way through everything, in a set-up of its own. */
function short(setup: Setup): Part {
  const name = (step: string): string => `${shape(setup)}/${step}`;
  const tcpOn = (lab: Lab): Promise<string> => tcp(lab, true, true);
  return {
    setup,
    steps: [
      { name: name('attach'), what: 'the driver attaches', run: attach },
      { name: name('tx'), what: 'pkt-gen: guest to host', run: tx },
      { name: name('rx'), what: 'pkt-gen: host to guest', run: rx },
      { name: name('tcp'), what: 'ping and TCP between guests', run: tcpOn },
      { ...cleanStep, name: name('clean') },
    ],
  };
}

const machines = ['pc', 'q35'] as const;
const setups = machines.flatMap((machine) =>
  [1, 2].flatMap((cpus) => [false, true].map((bar64) => ({ machine, cpus, bar64, queuePairs: 1 }))),
);

export const parts: readonly Part[] = [
  main,
  short({ machine: 'pc', cpus: 2, bar64: true, queuePairs: 2 }),
  ...setups.filter((s) => shape(s) !== shape(defaultSetup)).map(short),
];
