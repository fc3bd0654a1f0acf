/** `ptnet demo`: what ./start shows. */
import { availableParallelism } from 'node:os';
import type { Command } from 'commander';
import { command } from '../command.ts';
import { demo, demoText } from '../demo.ts';
import { UsageError } from '../errors.ts';
import { VERSION } from '../version.ts';

interface DemoFlags {
  readonly seconds?: string;
  readonly size?: string;
  readonly json?: boolean;
}

export function demoCommand(): Command {
  const examples = [
    ['ptnet demo', 'some seconds, then a summary'],
    ['ptnet demo --seconds 10 --size 1514', 'longer, with longer packets'],
  ] as const;
  return command(
    'demo',
    'start a daemon and two guests, send packets between them, show what happened',
    examples,
    false,
  )
    .option('--seconds <n>', 'how long packets are sent (default: 3)')
    .option('--size <bytes>', 'bytes of a packet (default: 60)')
    .option('--json', 'print the result as JSON')
    .action(async (flags: DemoFlags) => {
      const seconds = Number(flags.seconds ?? 3);
      if (!(seconds > 0 && seconds <= 3600)) throw new UsageError(`--seconds ${flags.seconds}: must be from 1 to 3600`);
      const size = Number(flags.size ?? 60);
      if (!Number.isInteger(size) || size < 60 || size > 2048) {
        throw new UsageError(`--size ${flags.size}: must be a whole number from 60 to 2048`);
      }
      const progress = (text: string): void => void process.stderr.write(`- ${text}\n`);
      const result = await demo({ seconds, size, pings: 20_000, progress });
      if (flags.json) process.stdout.write(`${JSON.stringify(result)}\n`);
      else {
        const machine = `Node ${process.version}, ${availableParallelism()} CPUs`;
        process.stdout.write(
          `\nptnet ${VERSION}, ${machine}: VALE switch vale0, two guests as processes\n${demoText(result)}`,
        );
      }
    });
}
