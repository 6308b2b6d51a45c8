package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

const dirMode = 0o700

// localPath returns where the local server's directory is or will be. It changes
// nothing.
func (c *cli) localPath() (string, error) {
	if c.LocalDir != "" {
		return filepath.Abs(c.LocalDir)
	}
	if c.given["local-dir"] {
		return "", usageError("--local-dir is empty: name a directory, or leave it out")
	}
	dir, err := defaultDir()
	if err != nil {
		return "", usageError("no directory for the local server (%v): name one with --local-dir or LOCKFABRIC_DIR, or a server with --server", err)
	}
	return dir, nil
}

// localDir returns the local server's directory, made if need be, and refuses
// one into which others can look or write.
func (c *cli) localDir() (string, error) {
	dir, err := c.localPath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return "", badDir(fmt.Errorf("%w: name another one with --local-dir or LOCKFABRIC_DIR, or a server with --server", err))
	}
	return dir, badDir(checkPrivate(dir))
}

func badDir(err error) error {
	if err != nil {
		return usageError("directory of the local server: %w", err)
	}
	return nil
}

// defaultDir is the directory for a user who names none. Locks are state: what
// empties caches must not empty it.
func defaultDir() (string, error) {
	base, err := os.UserCacheDir() // on Windows, LocalAppData is for all that stays on this host
	switch runtime.GOOS {
	case "windows":
	case "darwin", "ios":
		base, err = os.UserConfigDir() // Application Support
	default:
		if base, err = os.Getenv("XDG_STATE_HOME"), nil; filepath.IsAbs(base) {
			break
		}
		if base, err = os.UserHomeDir(); err == nil {
			base = filepath.Join(base, ".local", "state")
		}
	}
	return filepath.Join(base, "lockfabric"), err
}
