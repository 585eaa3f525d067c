-- Makes the database in which the rows of all Flowstacks are, and its owner, when the PostgreSQL of compose.yaml
-- starts for the first time.
\set password `cat /run/secrets/postgres/flowstack.secret`
CREATE ROLE flowstack LOGIN PASSWORD :'password';
CREATE DATABASE flowstack OWNER flowstack;
