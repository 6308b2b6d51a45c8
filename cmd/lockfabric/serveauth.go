package main

import (
	"cmp"
	"errors"
	"os"
	"strings"

	"github.com/lockfabric/lockfabric/embedded"
)

// Variables for passwords that are not in a file. The names differ from those that
// say who one is elsewhere: a server must not take its users from there.
const (
	passwordEnv        = "LOCKFABRIC_SERVE_PASSWORD"
	systemPasswordEnv  = "LOCKFABRIC_SERVE_SYSTEM_PASSWORD"
	clusterPasswordEnv = "LOCKFABRIC_SERVE_CLUSTER_PASSWORD"
)

// serveAuth is who may use the server. Secrets are never on the command line,
// which other users of the host can read.
type serveAuth struct {
	AllowUser          string   `placeholder:"NAME" help:"Let in clients with this name and the password in --password-file or LOCKFABRIC_SERVE_PASSWORD. More users: --config."`
	PasswordFile       string   `placeholder:"FILE" help:"Password of --allow-user, or its bcrypt hash."`
	TokenFile          string   `placeholder:"FILE" help:"Let in clients with the token in this file."`
	AllowNkey          []string `placeholder:"PUBLICKEY" help:"Let in clients with the private key of this user key (U...). May be repeated."`
	SystemUser         string   `placeholder:"NAME" help:"Let in clients with this name and the password in --system-password-file or LOCKFABRIC_SERVE_SYSTEM_PASSWORD to the system account: they see the settings of all servers, for doctor, and no locks."`
	SystemPasswordFile string   `placeholder:"FILE" help:"Password of --system-user, or its bcrypt hash."`

	TLSCert   string `name:"tls-cert" placeholder:"FILE" help:"Speak TLS with clients, with this certificate."`
	TLSKey    string `name:"tls-key" placeholder:"FILE" help:"Private key of --tls-cert."`
	TLSCA     string `name:"tls-ca" placeholder:"FILE" help:"Certificates of those who may sign clients' certificates; with --tls-verify."`
	TLSVerify bool   `name:"tls-verify" help:"Let in only clients with a certificate signed by --tls-ca."`

	ClusterUser         string `placeholder:"NAME" help:"Name by which the servers of the cluster know each other."`
	ClusterPasswordFile string `placeholder:"FILE" help:"Password of --cluster-user; or in LOCKFABRIC_SERVE_CLUSTER_PASSWORD."`
	ClusterTLSCert      string `name:"cluster-tls-cert" placeholder:"FILE" help:"Speak TLS between the servers of the cluster, with this certificate for both ends."`
	ClusterTLSKey       string `name:"cluster-tls-key" placeholder:"FILE" help:"Private key of --cluster-tls-cert."`
	ClusterTLSCA        string `name:"cluster-tls-ca" placeholder:"FILE" help:"Certificates of those who may sign the servers' certificates."`
}

func (a *serveAuth) options() (options, error) {
	user, err := login(embedded.WithUser, "--allow-user", a.AllowUser, "--password-file", a.PasswordFile, passwordEnv)
	system, serr := login(embedded.WithSystemUser, "--system-user", a.SystemUser, "--system-password-file", a.SystemPasswordFile, systemPasswordEnv)
	token, terr := readSecret("serve --token-file", a.TokenFile, "")
	if err := cmp.Or(err, serr, terr); err != nil {
		return nil, err
	}
	if a.TLSVerify != (a.TLSCA != "") {
		return nil, usageError("serve: to check clients' certificates, give --tls-verify and --tls-ca")
	}
	return append(user, system...).
		add(token != "", embedded.WithToken(token)).
		add(len(a.AllowNkey) > 0, embedded.WithNKey(a.AllowNkey...)).
		add(a.TLSCert+a.TLSKey != "", embedded.WithTLS(a.TLSCert, a.TLSKey)).
		add(a.TLSVerify, embedded.WithClientCA(a.TLSCA)), nil
}

// clusterOptions is what goes with --cluster-listen.
func (a *serveAuth) clusterOptions() (options, error) {
	opts, err := login(embedded.WithClusterAuth, "--cluster-user", a.ClusterUser, "--cluster-password-file", a.ClusterPasswordFile, clusterPasswordEnv)
	return opts.add(a.ClusterTLSCert+a.ClusterTLSKey+a.ClusterTLSCA != "",
		embedded.WithClusterTLS(a.ClusterTLSCert, a.ClusterTLSKey, a.ClusterTLSCA)), err
}

// login returns the option for a name and its password, none where neither is
// given.
func login(option func(name, password string) embedded.Option, nameFlag, name, fileFlag, file, env string) (options, error) {
	password, err := readSecret("serve "+fileFlag, file, env)
	switch {
	case err != nil:
		return nil, err
	case name != "" && password == "":
		return nil, usageError("serve: %s needs a password: %s or %s", nameFlag, fileFlag, env)
	case name != "":
		return options{option(name, password)}, nil
	case password != "": // set for nothing, it would only seem to protect
		return nil, usageError("serve: %s and %s need %s", fileFlag, env, nameFlag)
	}
	return nil, nil
}

// forCluster reports whether something was given that only a cluster needs.
func (a *serveAuth) forCluster() bool {
	return a.ClusterUser+a.ClusterPasswordFile+a.ClusterTLSCert+a.ClusterTLSKey+a.ClusterTLSCA != ""
}

// readSecret reads the secret of a command's flag from the file, or else from the environment. A line
// break at the end is not part of it.
func readSecret(flag, file, env string) (string, error) {
	switch {
	case file == "" && env == "":
		return "", nil
	case file == "":
		return os.Getenv(env), nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", usageError("%s: %w", flag, err)
	}
	text := strings.TrimRight(string(data), "\r\n")
	switch {
	case text == "":
		return "", usageError("%s: %s is empty", flag, file)
	case strings.ContainsAny(text, "\r\n"):
		return "", usageError("%s: %s has more than one line", flag, file)
	}
	return text, nil
}

// flagNames are the names that options have here, the longer ones first.
var flagNames = strings.NewReplacer(
	"WithTLS and WithClientCA", "--tls-cert, --tls-key and --tls-ca", "WithTLS", "--tls-cert and --tls-key", "WithClientCA", "--tls-verify with --tls-ca",
	"WithClusterTLS", "--cluster-tls-cert, --cluster-tls-key and --cluster-tls-ca", "WithClusterAuth", "--cluster-user", "WithCluster", "--cluster-listen and --routes",
	"WithConfigFile", "--config", "WithStoreDir", "--store", "WithServerName", "--name", "WithSync", "--sync", "WithListen", "--listen",
	"WithSystemUser", "--system-user", "WithUser", "--allow-user", "WithToken", "--token-file", "WithNKey", "--allow-nkey", "WithAllowNonLoopback", "--allow-remote",
)

// advise says in the words of the command line what to do.
func advise(err error) error {
	if !errors.Is(err, embedded.ErrInvalidOption) {
		return err
	}
	return usageError("serve: %s", strings.TrimPrefix(flagNames.Replace(err.Error()), embedded.ErrInvalidOption.Error()+": "))
}
