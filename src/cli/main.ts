/** The `ptnet` command: finds the subcommand, runs it, turns what goes wrong into one line and an exit status. */
import { setImmediate } from 'node:timers/promises';
import { Command, CommanderError } from 'commander';
import { bridgeCommand } from './commands/bridge.ts';
import { demoCommand } from './commands/demo.ts';
import { dumpCommand } from './commands/dump.ts';
import { hostCommand } from './commands/host.ts';
import { ifconfigCommand } from './commands/ifconfig.ts';
import { lbCommand } from './commands/lb.ts';
import { listCommand } from './commands/list.ts';
import { nmreplayCommand } from './commands/nmreplay.ts';
import { pktGenCommand } from './commands/pkt-gen.ts';
import { stopCommand } from './commands/stop.ts';
import { upCommand } from './commands/up.ts';
import { valeCtlCommand } from './commands/vale-ctl.ts';
import { vmCommand } from './commands/vm.ts';
import { EXIT_USAGE, errorText, exitStatus, systemText } from './errors.ts';
import { VERSION } from './version.ts';

function program(): Command {
  const ptnet = new Command('ptnet')
    .description('netmap passthrough: netmap ports for virtual machines and processes, in user space')
    .version(VERSION)
    .configureHelp({ subcommandTerm: (c) => c.name() })
    .addHelpText('after', '\n"ptnet COMMAND --help" has options and examples; docs/ says more.')
    .showSuggestionAfterError();
  const commands = [
    hostCommand(),
    listCommand(),
    pktGenCommand(),
    bridgeCommand(),
    lbCommand(),
    nmreplayCommand(),
    dumpCommand(),
    valeCtlCommand(),
    vmCommand(),
    upCommand(),
    ifconfigCommand(),
    stopCommand(),
    demoCommand(),
  ];
  for (const c of commands) ptnet.addCommand(c);
  for (const c of [ptnet, ...ptnet.commands]) {
    c.exitOverride().configureOutput({
      outputError: (text, write) =>
        write(
          `${text
            .trim()
            .replace(/^error: /, 'ptnet: ')
            .replace(/^(ptnet: unknown command '.*')$/, '$1; "ptnet --help" lists them')
            .replaceAll('\n', ' ')}\n`,
        ),
    });
  }
  return ptnet;
}

/** @param args the words after `ptnet` @returns the exit status */
async function main(args: readonly string[]): Promise<number> {
  const debug = args.includes('--debug') || (process.env['PTNET_DEBUG'] ?? '') !== '';
  try {
    await program().parseAsync(args, { from: 'user' });
    return Number(process.exitCode ?? 0);
  } catch (e) {
    if (e instanceof CommanderError) return e.exitCode === 0 ? 0 : EXIT_USAGE; // it has printed its message
    process.stderr.write(errorText(e, debug));
    return exitStatus(e);
  }
}

/** Exit status of a program that a signal ended is 128 and its number; 13 is SIGPIPE. */
const EXIT_SIGPIPE = 141;
// Whoever read what is printed has seen enough: the end, without a word, as of a program that SIGPIPE ends. (The daemon
// goes on without readers: host.ts.) What else keeps a text from being written is an error; on stderr nobody hears of it.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (e: NodeJS.ErrnoException) => {
    if (e.code === 'EPIPE') process.exit(EXIT_SIGPIPE);
    if (stream === process.stderr) return;
    process.stderr.write(`ptnet: stdout: ${systemText(e.message)}\n`);
    process.exit(1);
  });
}
const status = await main(process.argv.slice(2));
// What a slow reader has not taken from a pipe yet would be lost with the process.
await new Promise<void>((resolve) => void process.stdout.write('', () => resolve()));
await setImmediate(); // an error of what was printed last
process.exit(status);
