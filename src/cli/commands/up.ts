/** `ptnet up`: a netmap port as a network interface of this network namespace, for as long as the process runs. */
import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { NM_BDG_MAXRINGS, NM_BRIDGE_MAXSLOTS } from '../../abi/index.ts';
import { openInterface, parseLoaderConf, vnetHdrTunable } from '../../api/index.ts';
import { defaultRunDir } from '../../os/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { UsageError } from '../errors.ts';
import { applyWords, parseWords } from '../ifconfig-words.ts';
import { recordInterface } from '../interfaces.ts';
import { whole } from '../numbers.ts';
import { portName } from '../port-names.ts';

interface UpFlags extends CommonFlags {
  readonly name?: string;
  readonly rings?: string;
  readonly slots?: string;
  readonly bufSize?: string;
  readonly vnetHdr?: string;
  readonly loaderConf?: string;
}

export function upCommand(): Command {
  return command('up', 'make a port a network interface of this network namespace, until the command ends', [
    ['ptnet up vale0:a inet 10.0.0.1/24', 'an interface ptnet0 with an address'],
    ['ip netns exec blue ptnet up vale0:b --name lan0 mtu 9000 inet6 fd00::2/64 -lro', 'in a namespace'],
  ])
    .argument('<port>', 'a netmap port, e.g. vale0:a')
    .argument(
      '[words...]',
      'inet A.B.C.D/N, inet6 A::B/N, mtu N, ether MAC, promisc, -txcsum, -rxcsum, -tso, -lro (as in ifconfig)',
    )
    .option('--name <name>', "the interface's name (default: ptnet0, or the first free number)")
    .option('--rings <n>', 'rings of each direction; each pair is a queue of the interface')
    .option('--slots <n>', 'slots of each ring')
    .option('--buf-size <bytes>', 'bytes of a buffer')
    .option('--vnet-hdr <0|1>', 'ask for the VirtIO network header, and with it offloads (default 1)')
    .option('--loader-conf <file>', 'a file in the syntax of loader.conf with dev.netmap.ptnet_vnet_hdr')
    .allowUnknownOption()
    .action(async (port: string, words: string[], flags: UpFlags) => {
      const given = parseWords(words);
      if (given.up === false) throw new UsageError('"down": then there is nothing to do');
      if (flags.vnetHdr !== undefined && !/^[01]$/.test(flags.vnetHdr))
        throw new UsageError(`--vnet-hdr ${flags.vnetHdr}: must be 0 or 1`);
      const runDir = flags.runDir ?? defaultRunDir();
      const file = flags.loaderConf;
      const loaderConf = file === undefined ? undefined : parseLoaderConf(readFileSync(file, 'utf8'), file);
      const { txcsum, rxcsum, tso, lro, mtu, ether, ...rest } = given;
      const features = { txcsum, rxcsum, tso, lro, mtu, ether, ifname: flags.name };
      const ifnet = await openInterface(portName(port), {
        ...Object.fromEntries(Object.entries(features).filter(([, value]) => value !== undefined)),
        runDir,
        vnetHdr: vnetHdrTunable({ flag: flags.vnetHdr, env: process.env, loaderConf }),
        ...number('txRings', '--rings', flags.rings, 1, NM_BDG_MAXRINGS),
        ...number('rxRings', '--rings', flags.rings, 1, NM_BDG_MAXRINGS),
        ...number('txSlots', '--slots', flags.slots, 2, NM_BRIDGE_MAXSLOTS),
        ...number('rxSlots', '--slots', flags.slots, 2, NM_BRIDGE_MAXSLOTS),
        ...number('bufSize', '--buf-size', flags.bufSize, 64, 65472),
      });
      let forget: () => void = () => undefined;
      // What closing fails with is said where it is awaited, below.
      const end = (): void => void ifnet.close().catch(() => undefined);
      process.once('SIGINT', end);
      process.once('SIGTERM', end);
      try {
        applyWords(ifnet.name, rest);
        const { name, vnetHdrLen, queues, rxcsum: rx, lro: large } = ifnet;
        forget = recordInterface(runDir, { name, port, vnetHdrLen, queues: queues.length, rxcsum: rx, lro: large });
        process.stdout.write(
          `${name}: port ${port}, VirtIO header of ${vnetHdrLen} bytes, ${queues.length} queue${queues.length === 1 ? '' : 's'}\n`,
        );
        await ifnet.run();
      } finally {
        forget();
        await ifnet.close();
      }
    });
}

/** `{ [key]: n }` if the flag was given. @throws UsageError */
function number(key: string, flag: string, text: string | undefined, min: number, max: number): Record<string, number> {
  return text === undefined ? {} : { [key]: whole(flag, text, min, max) };
}
