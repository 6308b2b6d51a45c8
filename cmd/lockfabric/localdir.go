package main

import (
	"errors"
	"fmt"
	"io/fs"
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
	state, err := defaultDir()
	if err != nil {
		return "", usageError("no directory for the local server (%v): name one with --local-dir or LOCKFABRIC_DIR, or a server with --server", err)
	}
	if old := formerDir(); old != "" && !exists(state) && exists(old) {
		return old, nil
	}
	return state, nil
}

// localDir returns the local server's directory, made if need be, and refuses
// one into which others can look or write.
func (c *cli) localDir() (string, error) {
	if c.LocalDir == "" {
		adoptFormer()
	}
	dir, err := c.localPath()
	if err != nil {
		return "", err
	}
	if c.LocalDir == "" && dir == formerDir() {
		if err := checkPrivate(dir); !errors.Is(err, fs.ErrNotExist) {
			return dir, badDir(err)
		}
		return c.localDir() // somebody else has moved it by now; it is not made again
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

// formerDir is where the default directory was before 0.1: in the user's cache
// directory. It is "" where that is the same.
func formerDir() string {
	cache, err := os.UserCacheDir()
	if err != nil || runtime.GOOS == "windows" {
		return ""
	}
	return filepath.Join(cache, "lockfabric")
}

// adoptFormer moves the former default directory to the present one, once. It stays
// where it is, and in use, while a server runs there or when it can't be moved.
func adoptFormer() {
	state, err := defaultDir()
	old := formerDir()
	if err != nil || old == "" || exists(state) || !exists(old) {
		return
	}
	unlock, err := lockStore(filepath.Join(old, storeDir))
	if err != nil {
		return
	}
	defer unlock()
	// Somebody else may have been faster.
	if !exists(state) && os.MkdirAll(filepath.Dir(state), dirMode) == nil {
		_ = os.Rename(old, state)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
