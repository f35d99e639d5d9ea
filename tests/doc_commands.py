"""The commands of README.md and docs/: what `test_docs.py` runs, made small by options, and what it only reads."""

from doc_pages import SHORT_PROMPTS

IDLE = {
    **{"backbone": "TINY_BERT", "id_model_settings": "{'epochs': 1}"},
    **SHORT_PROMPTS,
}
ONE_SEED = {"seeds": 1}
WHOLE_DATA = {"data_path": "nothing-cut"}  # RecBole's own ml-100k

# In README.md, tests/test_results.py makes the tables under commands that begin so.
KEPT = "recbole-llm compare --runs=results/runs/"

RUN: dict[str, dict[str, object]] = {
    # README.md, index.md and first_run.md
    "recbole-llm --help": {},
    "recbole-llm run --help": {},
    "python run_recbole_llm.py --model=ST2SI --dataset=Scientific": {"backbone": "TINY"},
    "recbole-llm doctor": {},
    'recbole-llm recommend --run=saved/<run> --history="242,302"': {},
    # The run has been trained for an epoch, or for none: its items lie in no groups yet.
    "recbole-llm recommend --run=saved/<run> --user=196 --search=approximate": {"min_recall": 0.1},
    "recbole-llm --model=SASRec --dataset=ml-100k": {},
    "recbole-llm --model=IDLEAdapter --dataset=ml-100k --id_model=SASRec": IDLE,
    "recbole-llm --paper=st2si/table2/Scientific/st2si": {"backbone": "TINY"},
    "recbole-llm compare --models=ST2SI,IDLEAdapter,SASRec,GRU4Rec --dataset=ml-100k "
    "--model_settings=properties/recommended/packaged.yaml": {"backbone": "TINY", **SHORT_PROMPTS},
    "recbole-llm -m SASRec -d ml-100k --epochs=20 --dry-run": {},
    "recbole-llm --model=ST2SI --dataset=ml-100k --backbone=smollm2-135m --tuning=ilp": {},
    "recbole-llm --model=IDLEAdapter --dataset=ml-100k": IDLE,
    "recbole-llm --resume=saved/<run>": {},
    # large_catalogues.md
    "recbole-llm run --model=ST2SI --dataset=Scientific --tuning=ilp --loss_type=SampledCE --num_negatives=8192 "
    "--item_optimizer=adamw": {"backbone": "TINY"},
    # text_towers.md
    "recbole-llm run --model=Recformer --dataset=Scientific --backbone=sbert-minilm": {
        **{"backbone": "TINY_BERT", "max_sequence_tokens": 100, "epochs": 2},
    },
    # generation.md
    "recbole-llm --model=P5 --dataset=Scientific --backbone=smollm2-135m": {"backbone": "TINY", "epochs": 1},
    # prompted_models.md
    "recbole-llm prompts export --dataset=ml-100k --candidates=20 --candidate_seeds=1 --out=prompts.jsonl": {},
    # add_a_backbone.md
    "recbole-llm --model=ST2SI --dataset=ml-100k --backbone=models/my-llama --tuning=lora": {},
    # compare_and_tune.md
    "recbole-llm compare --models=ST2SI,SASRec,GRU4Rec --dataset=ml-100k --backbone=smollm2-135m --tuning=ilp "
    "--seeds=3": ONE_SEED,
    "recbole-llm compare --models=SASRec,ST2SI,ST2SI-LoRA --dataset=ml-100k --model_settings=models.yaml "
    "--show=ndcg@10,mrr": {},
    "recbole-llm compare --runs=results/runs/ml-100k.parquet --format=latex": WHOLE_DATA,
    "recbole-llm compare --runs=results/runs/ml-100k.parquet --models=SASRec-default,Pop --show=ndcg@10,"
    "interval.ndcg@10,valid.ndcg@10,epochs,best_epoch,seconds.fit,seeds --significance=false": {},
    "recbole-llm plot --kind=bars --comparison=comparisons/<name>/comparison.json": {},
    "recbole-llm plot --kind=groups --comparison=comparisons/<name>/comparison.json --metric=ndcg@10": {},
    "recbole-llm plot --kind=curves --runs=saved/<run> --out=plots": {},
    "recbole-llm report --comparison=comparisons/<name>/comparison.json": {},
    "recbole-llm tune --model=GRU4Rec --dataset=ml-100k --algo=random --trials=10": {"trials": 2},
    "recbole-llm recommend --run=saved/<run> --user=196": {},
    "recbole-llm recommend --run=saved/<run> --users=196,186 --k=5 --format=jsonl": {},
    "recbole-llm recommend --run=saved/<run> --users=all --exclude_seen=true --out=best.csv": {},
    'recbole-llm recommend --run=saved/<run> --history="242,302" --k=5': {},
    "recbole-llm recommend --run=saved/<run> --histories=histories.txt --format=csv": {},
    # tune.md
    "recbole-llm tune --model=SASRec --dataset=ml-100k --algo=bayes --trials=20": {"trials": 2},
    # one_pass.md
    "recbole-llm run --model=SASRec --dataset=ml-100k --train_positions=all": {},
    "recbole-llm run --model=SASRec --dataset=ml-100k --train_positions=all --sasrec_layers=authors "
    "--hidden_act=relu": {},
    "recbole-llm run --model=SASRec --dataset=ml-100k --train_positions=recent": {},
    "recbole-llm tune --model=SASRec --dataset=ml-100k --algo=bayes --trials=20 --storage=trials.log": {"trials": 2},
    # reproduce_a_table.md
    "recbole-llm run --paper=st2si/table2/Scientific/st2si": {"backbone": "TINY"},
    "recbole-llm run --paper=st2si/table2/Scientific/sasrec --seed=1": {},
    "recbole-llm run --paper=st2si/table2/Scientific/st2si-ilp --backbone=smollm2-135m --pretrain_epochs=2": {},
    "recbole-llm compare --models=GRU4Rec,SASRec,BERT4Rec,ST2SI --dataset=Scientific --seeds=3 --papers": {
        "backbone": "TINY",
        **ONE_SEED,
    },
    "recbole-llm compare --runs='saved/*-Scientific-*' --papers": {},
    # protocols.md
    "recbole-llm compare --runs='saved/*-Scientific-*' --protocols=both": {},
    "recbole-llm compare --runs=results/runs/ml-100k.parquet": WHOLE_DATA,
    "recbole-llm run --config_files=saved/<run>/config.yaml": {},
    # idle_adapter.md
    "recbole-llm run --model=IDLEAdapter --dataset=ml-100k": IDLE,
    "recbole-llm run --paper=idle_adapter/table4/ml-1m/no-layerwise": IDLE,
    "recbole-llm plot --kind=representations --run=saved/<run>": {},
    "recbole-llm tune --model=IDLEAdapter --dataset=ml-100k": {"trials": 2, **IDLE},
    "recbole-llm run --config_files=properties/recommended/scientific-idleadapter-two-items.yaml": {
        **IDLE,
        "id_model_settings": "{'epochs': 1}",
        "prompt_item": "{title}",
        "max_attribute_tokens": 8,
    },
    # mix_in_an_id_model.md
    "recbole-llm run --model=ST2SI --dataset=ml-100k --backbone=smollm2-135m --tuning=ilp --id_model=SASRec": {
        "id_model_settings": "{'epochs': 1}"
    },
    "recbole-llm run --config_files=properties/recommended/scientific-st2si-ilp.yaml": {
        "backbone": "TINY",
        "id_model_settings": "{'epochs': 1}",
    },
    # text_vectors.md
    "recbole-llm run --model=TextSLIT --dataset=Scientific": {"backbone": "TINY_BERT"},
    "recbole-llm run --model=TextSLIT --dataset=Scientific --rerank=150 --repeatable=False": {"backbone": "TINY_BERT"},
    **{
        f"recbole-llm run --config_files=properties/recommended/{dataset}-textslit.yaml": {
            **{"backbone": "TINY_BERT", "id_model": "SASRec", "id_model_settings": "{'epochs': 1}"},
            "repeatable": False,  # a dataset of the tests has repeats, Scientific and Games none
        }
        for dataset in ("scientific", "games")
    },
    "recbole-llm --model=UniSRec --dataset=Scientific --backbone=sbert-minilm": {"backbone": "TINY_BERT"},
    "recbole-llm --model=UniSRec --dataset=Scientific --pretrain_datasets=Games": {"backbone": "TINY_BERT"},
    "recbole-llm --model=ZESRec --dataset=Scientific --pretrain_datasets=Games --epochs=0": {"backbone": "TINY_BERT"},
    # pretraining_and_scenarios.md
    "recbole-llm --model=ST2SI --dataset=Scientific --tuning=ilp --pretrain_datasets=Food,Cell --pretrain_epochs=15": {
        "backbone": "TINY"
    },
    "recbole-llm pretrain --pretrain_datasets=Food --pretrain_epochs=40 --pretrain_save_epochs=5,10,15,20,40": {
        "backbone": "TINY",
        "pretrain_epochs": 2,
        "pretrain_save_epochs": "1,2",
    },
    "recbole-llm --model=ST2SI --dataset=Arts --tuning=ilp --backbone=saved/pretrain-Food-<hash>/backbone-epoch-10": {},
    "recbole-llm --model=ST2SI --dataset=Arts --tuning=ilp --pretrain_datasets=Food --pretrain_epochs=40 "
    "--pretrain_save_epochs=10": {"backbone": "TINY", "pretrain_epochs": 2, "pretrain_save_epochs": "1"},
}

READ = {
    "recbole-llm run --model=Recformer --dataset=Scientific --backbone=longformer-base-4096 --attention_window=64 "
    "--max_sequence_tokens=1024 --item_text_fields=title,brand,categories": "the weights of a Longformer; "
    "test_towers_together.py trains a tiny one",
    "torchrun --standalone --nproc_per_node=2 -m recbole_llm run --model=ST2SI --dataset=Scientific": "two processes; "
    "tests/test_several_processes.py starts them",
    "torchrun --standalone --nproc_per_node=2 -m recbole_llm run --model=ST2SI --dataset=Scientific "
    "--backbone=llama-7b --weights=bf16 --gradient_checkpointing=True --shard=backbone": "a tiny one in "
    "tests/test_split_backbone.py",
    "recbole-llm compare --runs='results/runs/Scientific.parquet/*/seed-2020' "
    "--models=IDLEAdapter-last-item-ComiRec-left-out,TextInitSASRec,ComiRec-two-interests,TwinBERT,AlphaFuse,"
    "FDSA-left-out,GRU4Rec-one-pass-20-trials --protocols=both --show=ndcg@10 --significance=False": (
        "tests/test_results.py compares the page's table with the kept runs"
    ),
    "recbole-llm compare --runs=results/runs/ml-100k-llara.parquet --models=SASRec,Caser,TextSLIT-without-text,"
    "SASRec-MRR,TextSLIT,GRU4Rec-MRR,GRU4Rec,FPMC,ComiRec,TextInitSASRec,ST2SI-ILP-last-item,LLaRA-GRU4Rec,"
    "LLaRA-SASRec,LLaRA-Caser,TALLRec,LLMPrompt,LLMPrompt-likelihood --papers --show=candidates.hit@1,"
    "candidates.valid_ratio,seconds.fit,parameters.trained,seeds --significance=False": "likewise, of leaderboard.md",
    **dict.fromkeys(
        (
            "recbole-llm run --model=LLaRA --dataset=ml-100k --id_model=SASRec",
            "recbole-llm run --model=TALLRec --dataset=ml-100k --task=listwise",
            "recbole-llm run --model=LLMPrompt --dataset=ml-100k --answer=likelihood",
        ),
        "prompts longer than the tiny models read; tests/test_prompted_end_to_end.py runs them",
    ),
    "recbole-llm run --model=TALLRec --dataset=ml-100k --config_files=properties/task/ratings.yaml": (
        "it leaves no ranks; tests/test_prompted_end_to_end.py runs it"
    ),
    "recbole-llm prompts ask --endpoint=https://host/v1 --model=NAME --answers=answers.jsonl": (
        "another host; tests/inference/test_hosted_prompts.py asks one of its own"
    ),
    "recbole-llm prompts import --answers=answers.jsonl --name=GPT-4": "tests/inference/test_hosted_prompts.py has it",
    "recbole-llm pretrain --model=UniSRec --pretrain_datasets=Games,Food": "tests/stages/ has it",
    'recbole-llm recommend --run=saved/<run of UniSRec> --history="242,302" --new_items=new.tsv': (
        "tests/cli/test_recommend_command.py runs it"
    ),
    "recbole-llm serve --run=saved/<run>": "it ends when it is told to; tests/cli/test_serve_command.py asks it",
    "recbole-llm serve --run=saved/<run> --exclude_seen=true --max_batch=256 --window_ms=2": "the same",
    "recbole-llm serve --run=saved/<run> --search=approximate": (
        "it ends when it is told to; tests/inference/test_search_in_use.py asks such a server"
    ),
    "python benchmarks/approximate_search.py --run=saved/<run> --items=1000000": (
        "it measures; tests/inference/test_approximate_search.py has what it measures"
    ),
    "python benchmarks/large_catalogue.py": "it measures; tests/inference/test_best_items.py has what it measures",
    "recbole-llm tune --model=SASRec --dataset=Scientific --train_positions=all "
    "--params_file=properties/hyper/one-pass/SASRec.hyper --algo=bayes --trials=20": "data that is not here",
    "recbole-llm run --paper=list:st2si/table2": "it prints names; tests/config/test_paper_rows.py reads them",
    "recbole-llm pretrain --model=Recformer --pretrain_datasets=Games --item_text_fields=title "
    "--backbone=sbert-minilm": "a second dataset; tests/model/test_towers_together.py pre-trains it on two",
    "python benchmarks/constrained_decoding.py": "it measures; tests/test_constrained_benchmark.py runs it small",
    "make run": "minutes; tests/test_end_to_end.py runs what it starts, on fewer users",
    "make test": "minutes",
    "recbole-llm prepare --dataset=Scientific --report": "network",
    "recbole-llm prepare --dataset=Scientific [--raw=FOLDER] [--out=FOLDER] [--report[=FILE]] "
    "[--tokenizer=NAME]": "network",
    "recbole-llm prepare --dataset=ml-100k-llara --raw=FOLDER": "files that are not here",
}
