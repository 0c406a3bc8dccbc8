create table note (
    id integer primary key autoincrement,
    text text not null
) strict;
