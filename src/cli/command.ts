/** What all commands share: the options every one takes, and how examples stand in the help. */
import { Command } from 'commander';

export interface CommonFlags {
  readonly runDir?: string;
  readonly debug?: boolean;
}

/**
 * A command with --run-dir and --debug.
 * @param examples command lines for the help, each with what it does @param hasDaemon false: no --run-dir, it has none to find
 */
export function command(
  name: string,
  summary: string,
  examples: readonly (readonly [string, string])[],
  hasDaemon = true,
): Command {
  const text = examples.map(([line, does]) => `  # ${does}\n  ${line}`).join('\n');
  const c = new Command(name).summary(summary).description(summary);
  if (hasDaemon)
    c.option('--run-dir <dir>', "the daemon's run directory (default: /run/ptnet for root, else the user's)");
  return c.option('--debug', 'show where an error comes from').addHelpText('after', `\nExamples:\n${text}`);
}

/** Collects a repeated option. */
export const collect = (value: string, before: readonly string[] = []): string[] => [...before, value];
