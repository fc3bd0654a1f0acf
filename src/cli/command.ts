/** What all commands share: the options every one takes, and how examples stand in the help. */
import { Command } from 'commander';

export interface CommonFlags {
  readonly runDir?: string;
  readonly debug?: boolean;
}

/** A command with --run-dir and --debug. @param examples command lines for the help, each with what it does */
export function command(name: string, summary: string, examples: readonly (readonly [string, string])[]): Command {
  const text = examples.map(([line, does]) => `  # ${does}\n  ${line}`).join('\n');
  return new Command(name)
    .summary(summary)
    .description(summary)
    .option('--run-dir <dir>', "the daemon's run directory (default: /run/ptnet for root, else the user's)")
    .option('--debug', 'show where an error comes from')
    .addHelpText('after', `\nExamples:\n${text}`);
}

/** Collects a repeated option. */
export const collect = (value: string, before: readonly string[] = []): string[] => [...before, value];
