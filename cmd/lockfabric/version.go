package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

type versionCmd struct{}

// versionInfo is the JSON of version.
type versionInfo struct {
	Version  string `json:"version"`            // of the module, "(devel)" for a build from a work tree without tags
	Revision string `json:"revision,omitempty"` // of the version control system
	Time     string `json:"time,omitempty"`     // of that revision, RFC 3339
	Modified bool   `json:"modified,omitempty"` // the work tree had changes
	Go       string `json:"go"`
	Platform string `json:"platform"` // "linux/amd64"
}

// newVersionInfo tells what is known of a build, nil if nothing was recorded.
func newVersionInfo(build *debug.BuildInfo) versionInfo {
	v := versionInfo{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if build == nil {
		return v
	}
	if build.Main.Version != "" {
		v.Version = build.Main.Version
	}
	for _, setting := range build.Settings {
		switch setting.Key {
		case "vcs.revision":
			v.Revision = setting.Value
		case "vcs.time":
			v.Time = setting.Value
		case "vcs.modified":
			v.Modified = setting.Value == "true"
		}
	}
	return v
}

func (*versionCmd) Run(c *cli, s *streams) error {
	v := thisVersion()
	return s.print(c.Output, v, v.write)
}

func thisVersion() versionInfo {
	build, _ := debug.ReadBuildInfo()
	return newVersionInfo(build)
}

func (v versionInfo) write(w io.Writer) {
	fmt.Fprintf(w, "lockfabric %s", v.Version)
	if v.Revision != "" {
		fmt.Fprintf(w, " %.12s", v.Revision)
		if v.Modified {
			fmt.Fprint(w, "+changes")
		}
	}
	fmt.Fprintf(w, " %s %s\n", v.Go, v.Platform)
}
