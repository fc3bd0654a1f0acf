/** Devices that are removed while a client is only just coming: on a rig whose datapath answers when the test says so. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { Devices, type DevicesEvent } from '../../../src/host/devices.ts';
import type { Command, Mailbox } from '../../../src/kloop/index.ts';
import { closeFd, MessageSocket, socketPair } from '../../../src/os/index.ts';
import { DeviceRig } from '../device/rig.ts';

/**
 * Devices of a rig, in one region, and the commands that reached their datapath. From the first `heldUp` on, those are
 * answered when `go` is called.
 */
async function setUp(
  many = 1,
  heldUp?: Command['op'],
): Promise<{ devices: Devices; commands: Command['op'][]; go: () => void; post: DevicesEvent[] }> {
  const rig = new DeviceRig();
  const commands: Command['op'][] = [];
  let go = (): void => undefined;
  const held = new Promise<void>((resolve) => (go = resolve));
  const call = async (command: Command): Promise<number> => {
    commands.push(command.op);
    if (heldUp === undefined || commands.includes(heldUp)) await held;
    const result = rig.kloop.execute(command);
    if ('error' in result) throw new Error(result.error);
    return result.value;
  };
  const post: DevicesEvent[] = [];
  const mailbox = { call } as unknown as Mailbox<Command>;
  const devices = new Devices([{ arena: rig.arena, mailbox }], (event) => void post.push(event));
  const { region } = rig.addPort({ roomFor: many });
  while (rig.ports.length < many) rig.addPort({ region });
  for (const [i, { registration }] of rig.ports.entries()) {
    const ptnet = { registration, trustUnsealedMemory: false };
    await devices.execute({ op: 'ptnet-add', id: i + 1, name: 'p', thread: 0, ptnet });
  }
  return { devices, commands, go, post };
}

const isEnded = (fd: number): boolean => new MessageSocket(fd).receive(new Uint8Array(1)).ended;

test('R20: a device that is removed while a client connects disconnects it, and does not wait for it to go', async () => {
  const { devices, commands, go } = await setUp();
  const [ours, theirs] = socketPair();
  const served = devices.execute({ op: 'serve', id: 1, fd: theirs });
  while (commands.length === 0) await turn();
  const removed = devices.execute({ op: 'remove', id: 1 });
  go();
  await Promise.all([served, removed]);
  assert.equal(isEnded(ours), true);
  const kicks = commands.filter((op) => op.startsWith('kick'));
  assert.deepEqual(kicks, ['kick-add', 'kick-add', 'kick-remove', 'kick-remove']);
  closeFd(ours);
});

test('R20: a client that waits for one before it is not served by a device that was removed meanwhile', async () => {
  const { devices, commands, go, post } = await setUp();
  go();
  const [first, firstPeer] = socketPair();
  const [second, secondPeer] = socketPair();
  await devices.execute({ op: 'serve', id: 1, fd: firstPeer });
  const waiting = devices.execute({ op: 'serve', id: 1, fd: secondPeer });
  await devices.execute({ op: 'remove', id: 1 });
  await waiting;
  assert.deepEqual([isEnded(first), isEnded(second)], [true, true]);
  assert.equal(commands.filter((op) => op === 'kick-add').length, 2, 'the first client’s alone');
  const states = post.flatMap((event) => (event.event === 'state' ? [event.state.attached] : []));
  assert.equal(states.at(-1), false);
  for (const fd of [first, second]) closeFd(fd);
});

test('R19: a device that nobody has used is removed when a rebuild is over that may be reading what it holds', async () => {
  const { devices, commands, go } = await setUp(3, 'held');
  const clients = [1, 2].map((id) => [id, ...socketPair()] as const);
  for (const [id, , fd] of clients) await devices.execute({ op: 'serve', id, fd });
  const order: number[] = [];
  const remove = (id: number): Promise<void> => devices.execute({ op: 'remove', id }).then(() => void order.push(id));
  const one = remove(1);
  while (!commands.includes('held')) await turn();
  const three = remove(3);
  for (let i = 0; i < 10; i++) await turn();
  const early = [...order];
  go();
  await Promise.all([one, three, remove(2)]);
  for (const [, fd] of clients) closeFd(fd);
  assert.deepEqual(early, [], 'its ledger was about to be read');
});
