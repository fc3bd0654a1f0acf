/** `ptnet vale-ctl`: manages VALE switches with vale-ctl(4)'s letters. docs/vale.md describes what they do. */
import type { Command } from 'commander';
import type { PortInfo, ValeCtlCommand } from '../../abi/index.ts';
import { defaultRunDir, valeCtl } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { UsageError } from '../errors.ts';
import { interfaceName, portName, switchPort } from '../port-names.ts';
import { parseRingConfig } from '../../ports/names.ts';

type Flags = CommonFlags &
  Readonly<Partial<Record<'n' | 'r' | 'a' | 'd' | 'g' | 'C' | 'm' | 'h' | 'p' | 'P', string>>> & {
    readonly l?: string | true;
    readonly v?: true;
  };

export function valeCtlCommand(): Command {
  const c = command('vale-ctl', 'make, attach, detach, remove and list ports of VALE switches', [
    ['ptnet vale-ctl', 'list the ports of all switches'],
    ['ptnet vale-ctl -n v0 -C 512,512,2', 'make a persistent port with two rings of 512 slots each way'],
    ['ptnet vale-ctl -a vale0:v0', 'attach it to a switch'],
    ['ptnet pkt-gen -i netmap:v0 -f rx', 'use it'],
    ['ptnet vale-ctl -d vale0:v0 && ptnet vale-ctl -r v0', 'detach and remove it'],
    ['ptnet vale-ctl -a vale0:eth1', 'make a network card a port of a switch (docs/nics.md)'],
    ['ptnet vale-ctl -a vale0:eth1 -m lab', 'the same in the region @lab, for zero-copy monitors (docs/monitors.md)'],
  ])
    .option('-g <port>', 'show the shape and the region of a port')
    .option('-a <valeSSS:interface>', 'attach a persistent port, or an interface of the host, to a switch')
    .option('-d <valeSSS:interface>', 'detach it')
    .option('-n <interface>', 'make a persistent port')
    .option('-r <interface>', 'remove it')
    .option('-l [valeSSS:PPP]', 'show the numbers of a switch and a port')
    .option('-C <shape>', 'with -n: slots and rings, TX_SLOTS[,RX_SLOTS[,TX_RINGS[,RX_RINGS]]]')
    .option('-m <id>', 'with -n, -a, -h: the memory region (@ID); without it a port has its own')
    .option('-h <valeSSS:interface>', "attach an interface of the host, and the host's stack behind it")
    .option('-p <valeSSS:interface>', 'refused: the daemon decides itself when it polls')
    .option('-P <valeSSS:interface>', 'refused: likewise')
    .option('-v', 'say what was done')
    .helpOption('--help', 'display help for command');
  return c.action((flags: Flags) => run(flags));
}

const say = (text: string): void => void process.stdout.write(`${text}\n`);

async function run(flags: Flags): Promise<void> {
  const { runDir = defaultRunDir(), v = false } = flags;
  const asked = parseValeCtl(flags);
  const { ports, info, portIndex } = await valeCtl(asked, runDir);
  for (const p of ports ?? []) {
    if (flags.l === undefined || flags.l === true) say(`${p.name} bridge_idx ${p.bridgeIdx} port_idx ${p.portIdx}`);
    else say(`bridge_idx: ${p.bridgeIdx}\nport_idx:   ${p.portIdx}`);
  }
  if (info !== undefined && (asked.letter === 'g' || v)) say(infoText(info));
  if (portIndex !== undefined && v) say(`port_index: ${portIndex}`);
}

/** The operation that the letters ask for. @throws UsageError, PortNameError */
export function parseValeCtl(flags: Flags): ValeCtlCommand {
  if (flags.p !== undefined || flags.P !== undefined) {
    throw new UsageError('-p, -P: the daemon decides itself when it polls');
  }
  const letters = (['g', 'a', 'h', 'd', 'n', 'r', 'l'] as const).filter((letter) => flags[letter] !== undefined);
  if (letters.length > 1) throw new UsageError(`only one of ${letters.map((l) => `-${l}`).join(', ')} at a time`);
  const letter = letters[0] ?? 'l';
  if (letter !== 'n' && flags.C !== undefined) throw new UsageError('-C goes with -n');
  if (!'nah'.includes(letter) && flags.m !== undefined) throw new UsageError('-m goes with -n, -a and -h');
  if (letter === 'l') return { letter, ...(typeof flags.l === 'string' ? { name: switchPort('-l', flags.l) } : {}) };
  const name = flags[letter]!;
  if (letter === 'g') return { letter, name: name.includes(':') ? portName(name) : interfaceName('-g', name) };
  if (letter === 'r') return { letter, name: interfaceName('-r', name) };
  const memId = flags.m === undefined ? {} : { memId: flags.m };
  if (letter !== 'n') return { letter, name: switchPort(`-${letter}`, name, flags.m), ...memId };
  interfaceName('-n', name, flags.m);
  if (flags.C !== undefined) parseRingConfig(flags.C);
  return { letter, name, ...(flags.C === undefined ? {} : { config: flags.C }), ...memId };
}

function infoText({ memsize, txSlots, rxSlots, txRings, rxRings, memId }: PortInfo): string {
  return [
    `memsize:    ${memsize}`,
    `tx_slots:   ${txSlots}`,
    `rx_slots:   ${rxSlots}`,
    `tx_rings:   ${txRings}`,
    `rx_rings:   ${rxRings}`,
    `mem_id:     ${memId}`,
  ].join('\n');
}
