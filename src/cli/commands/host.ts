/** `ptnet host`: runs a daemon until a signal or `ptnet stop` ends it. */
import type { Command } from 'commander';
import { exitNow } from '../../os/index.ts';
import { type CommonFlags, collect, command } from '../command.ts';
import { VERSION } from '../version.ts';

/** How long a daemon that has been asked to end may still be starting. */
const START_MS = 2000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

interface HostCommandFlags extends CommonFlags {
  readonly config?: string;
  readonly vm?: readonly string[];
  readonly threads?: string;
  readonly cpus?: string;
  readonly logLevel?: string;
}

export function hostCommand(): Command {
  return command('host', 'run the daemon that serves ports to virtual machines and processes', [
    ['ptnet host', 'serve local processes, which open ports by name'],
    ['ptnet host --vm fw=vale0:fw,vale1:fw --vm web=vale1:web', 'two machines; see ptnet vm for their QEMU arguments'],
    ['ptnet host --config ptnet.yaml', 'everything from a file (docs/configuration.md)'],
  ])
    .option('--config <file>', 'configuration file (YAML)')
    .option('--vm <name=port[,port...]>', 'give a virtual machine its ports; may be repeated', collect)
    .option('--threads <n>', 'datapath threads (default: 1, or one for each of --cpus)')
    .option('--cpus <list>', 'pin the datapath threads to CPUs, the first to the first of them, e.g. 0,2')
    .option(
      '--log-level <level>',
      'how much is logged: silent, fatal, error, warn, info, debug or trace (default: info)',
    )
    .action(async (flags: HostCommandFlags) => {
      // Who reads the log may go: the daemon stays.
      process.stderr.removeAllListeners('error').on('error', () => undefined);
      // Loaded here, because the other commands need none of it and start in a third of the time without it.
      const { defaultConfig, loadConfig, mergeFlags } = await import('../../host/config.ts');
      const { startDaemon } = await import('../../host/daemon.ts');
      const base = flags.config === undefined ? defaultConfig() : loadConfig(flags.config);
      const { started: daemon, onSignal } = await heedingSignals(startDaemon(mergeFlags(base, flags), VERSION));
      let warned = false;
      onSignal((signal) => {
        const vms = signal === 'SIGINT' && !warned ? daemon.attachedVms() : [];
        if (vms.length === 0) return void daemon.stop(signal);
        warned = true;
        daemon.log.warn(
          `not stopped: these VMs run and would lose their ports for good (QEMU may even abort): ${vms.join(', ')}; ` +
            'end them first, or interrupt again (SIGTERM does not ask)',
        );
      });
      const failed = (e: unknown): void => {
        daemon.log.fatal({ err: e }, 'a fault of ptnet itself');
        void daemon.stop('a fault of ptnet itself', 1);
      };
      process.on('uncaughtException', failed).on('unhandledRejection', failed);
      const { code } = await daemon.exited;
      // R20: no thread that is blocked in a native call keeps the process.
      exitNow(code);
    });
}

/**
 * Waits for the daemon to run. A signal until then is for the action that is given to `onSignal`; if it then takes too
 * long, it ends the process (R20). The handlers stay the same: a signal that comes while they change would be lost.
 */
async function heedingSignals<T>(
  starting: Promise<T>,
): Promise<{ started: T; onSignal: (action: (signal: string) => void) => void }> {
  let early: string | undefined;
  let late: NodeJS.Timeout | undefined;
  let act = (signal: string): void => {
    early ??= signal;
    late ??= setTimeout(() => {
      process.stderr.write(`ptnet: ${signal} while the daemon was starting, which took too long\n`);
      exitNow(1);
    }, START_MS);
  };
  for (const name of SIGNALS) process.on(name, (signal) => act(signal));
  try {
    const started = await starting;
    return {
      started,
      onSignal: (action) => {
        act = action;
        if (early !== undefined) action(early);
      },
    };
  } finally {
    clearTimeout(late);
  }
}
